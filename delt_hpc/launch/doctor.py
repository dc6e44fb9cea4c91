"""Does a cluster fit a profile? Checks Slurm's commands and settings, and runs a small job on a node."""

import json
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from delt_hpc.config.schema import STAGES, Stage
from delt_hpc.launch import environment, queue
from delt_hpc.launch.containers import interpreter
from delt_hpc.launch.environment import Finding
from delt_hpc.launch.profile import Profile
from delt_hpc.launch.request import warnings
from delt_hpc.launch.script import Script, text
from delt_hpc.run.folder import write_text
from delt_hpc.version import VERSION

_POLL_SECONDS = 0.5


def examine(profile: Profile, folder: Path, *, job: bool, wait: float) -> Iterator[Finding]:
    """Check the cluster; an error ends the checks that depend on it.

    Args:
        folder: a folder on the file system that nodes share. The job writes a small temporary file there.
        job: also run a job on a node.
        wait: seconds to wait for that job.
    """
    absent = [name for name in ("sbatch", "squeue", "scancel", "scontrol", "srun") if shutil.which(name) is None]
    if absent:
        yield Finding("error", f"not found: {', '.join(absent)}", "use a login node, or load Slurm's module")
        return
    try:
        yield Finding("OK", queue.call("sbatch", "--version").strip())
        settings = queue.settings()
    except queue.QueueError as error:
        yield Finding("error", str(error), "is SLURM_CONF right, and is slurmctld running?")
        return
    yield from judge_settings(settings, profile)
    yield _accounting()
    for line in warnings():
        yield Finding("warning", line)
    refused = False
    for stage in STAGES:
        finding = _test_only(profile, stage, folder)
        refused = refused or finding.level == "error"
        yield finding
    if job and not refused:
        yield from _run_job(profile, folder.absolute(), wait)


def judge_settings(settings: dict[str, str], profile: Profile) -> Iterator[Finding]:
    """Findings about job arrays, preemption and requeueing in the cluster's settings."""
    size = int(settings.get("MaxArraySize", "0"))
    if size < 2:
        yield Finding("error", f"MaxArraySize = {size}: no job arrays", "ask the site's administrators")
    elif profile.max_array_size and profile.max_array_size > size:
        text = f"MaxArraySize = {size}, but the profile says {profile.max_array_size}"
        yield Finding("error", text, "remove max_array_size from the profile")
    else:
        yield Finding("OK", f"MaxArraySize = {size}, MaxJobCount = {settings.get('MaxJobCount', '?')}")
    if settings.get("PreemptType", "preempt/none").endswith("none"):
        yield Finding("OK", "jobs are not preempted")
    elif "CANCEL" in settings.get("PreemptMode", ""):
        yield Finding("warning", "preempted jobs are cancelled", "`submit` again when `status` shows them as failed")
    elif "preempt_send_user_signal" in settings.get("SlurmctldParameters", ""):
        yield Finding("OK", "preempted jobs get SIGUSR2, save their state and are requeued")
    else:
        yield Finding("OK", "preempted jobs get SIGTERM, save their state and are requeued")
    kill = settings.get("KillWait", "").split()
    if kill and kill[0].isdigit() and int(kill[0]) < 10:
        yield Finding(
            "warning",
            f"KillWait = {kill[0]} s: a cancelled task may be killed before its state is saved",
            "it then resumes from its last checkpoint (recover.checkpoint_seconds)",
        )


def _accounting() -> Finding:
    try:
        queue.call("sacct", "-n", "-X", "-o", "JobID", "-S", "now")
    except queue.QueueError:
        return Finding("OK", "no accounting; `status` uses the run's files and the queue")
    return Finding("OK", "accounting is available")


def _test_only(profile: Profile, stage: Stage, folder: Path) -> Finding:
    """Would Slurm accept the stage's job? `sbatch --test-only` submits nothing."""
    done = queue.try_sbatch(_script(profile, stage, "true", folder.absolute() / "doctor.out"), "--test-only")
    message = " ".join(done.stderr.split()).removeprefix("sbatch: ")
    if done.returncode == 0:
        return Finding("OK", f"{stage}: {message}")
    remedy = "set partition, account, qos, gpus, memory or minutes in the profile"
    return Finding("error", f"{stage}: {message}", remedy)


def _script(profile: Profile, stage: Stage, command: str, output: Path, folders: tuple[str, ...] = ()) -> str:
    return text(
        Script(
            stage=stage,
            title=("delt-hpc doctor",),
            name="delt-doctor",
            command=command,
            signal="USR2",
            output=str(output),
            workdir=str(Path.cwd()),
            folders=folders,
        ),
        profile,
    )


def _run_job(profile: Profile, folder: Path, wait: float) -> Iterator[Finding]:
    """Run `delt_hpc.launch.environment` as a job, with the resources of the stage recover."""
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    question, answer, log = (folder / f".doctor-{token}.{kind}" for kind in ("ask", "json", "out"))
    write_text(question, token)
    shown = (str(folder), str(Path.cwd()))
    python = interpreter(profile, shown, str(Path.cwd()), sys.executable)
    command = f"{python} -m delt_hpc.launch.environment {shlex.quote(str(question))} {shlex.quote(str(answer))}"
    try:
        job = queue.submit(_script(profile, "recover", command, log, shown))
        yield from _wait_for_answer(job, answer, log, wait, profile)
    except queue.QueueError as error:
        yield Finding("error", str(error), "see the lines above")
    finally:
        for path in (question, answer, log):
            path.unlink(missing_ok=True)


def _wait_for_answer(job: str, answer: Path, log: Path, wait: float, profile: Profile) -> Iterator[Finding]:
    end, ask = time.monotonic() + wait, queue.PatientQueue()
    while not answer.exists():
        entry = ask([job]).get(job)
        if entry and not entry.live:
            time.sleep(2 * _POLL_SECONDS)  # on a shared file system the file may appear late
            if not answer.exists():
                tail = log.read_text(errors="replace")[-500:] if log.exists() else "it wrote no log here"
                remedy = "are the folder and the interpreter or image on a file system that nodes share?"
                yield Finding("error", f"job {job} ended {entry.state} without a result: {tail.strip()}", remedy)
                return
        if time.monotonic() > end:
            queue.cancel([job])
            state = f"{entry.state} {entry.reason}" if entry else "unknown"
            yield Finding("warning", f"job {job} has no result after {wait:.0f} s ({state})", "wait longer: --wait")
            return
        time.sleep(_POLL_SECONDS)
    yield from judge_node(json.loads(answer.read_text(encoding="utf-8")), profile)


def judge_node(node: dict[str, Any], profile: Profile) -> Iterator[Finding]:
    """Findings about the result of `environment.probe_node`."""
    yield Finding("OK", f"a job ran on {node['host']} and sees the shared folder")
    if node["version"] == VERSION:
        yield Finding("OK", f"delt-hpc {VERSION} there too")
    else:
        remedy = "rebuild the image, or set python: in the profile"
        yield Finding("error", f"delt-hpc {node['version']} there, {VERSION} here", remedy)
    yield from environment.judge(node["environment"], gpus=bool(profile.resources("recover").gpus))
    if profile.apptainer and not node["scontrol"]:
        yield Finding("OK", "no scontrol in the image: the script outside requeues tasks")
