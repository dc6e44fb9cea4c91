"""Is a site fit for a profile? Its commands, its settings, and a small job that looks around on a node."""

import json
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from delt_hpc.config.schema import STAGES, Stage
from delt_hpc.launch import environment, queue
from delt_hpc.launch.executor import outside_any_job
from delt_hpc.launch.finding import Finding
from delt_hpc.launch.profile import Profile, interpreter
from delt_hpc.launch.script import Script, text
from delt_hpc.launch.submit import warnings
from delt_hpc.run.folder import write_text
from delt_hpc.version import VERSION

_POLL_SECONDS = 0.5


def examine(profile: Profile, folder: Path, *, job: bool, wait: float) -> Iterator[Finding]:
    """One finding after the other; what cannot be looked at because of an error is left out.

    Args:
        folder: on the disk that nodes share; the job leaves a small file there for a while.
        job: try a job on a node too.
        wait: seconds that it may take.
    """
    absent = [name for name in ("sbatch", "squeue", "scancel", "scontrol", "srun") if shutil.which(name) is None]
    if absent:
        yield Finding("error", f"not found: {', '.join(absent)}", "use a login node, or load Slurm's module")
        return
    yield Finding("OK", queue.call(["sbatch", "--version"]).strip())
    try:
        settings = queue.settings()
    except queue.QueueError as error:
        yield Finding("error", str(error), "is SLURM_CONF right, and slurmctld up?")
        return
    yield from judge_settings(settings, profile)
    yield from _accounting()
    for line in warnings():
        yield Finding("warning", line)
    refused = False
    for stage in STAGES:
        finding = _accepted(profile, stage, folder)
        refused = refused or finding.level == "error"
        yield finding
    if job and not refused:
        yield from _job(profile, folder.absolute(), wait)


def judge_settings(settings: dict[str, str], profile: Profile) -> Iterator[Finding]:
    """What `scontrol show config` says about arrays, requeueing and preemption."""
    size = int(settings.get("MaxArraySize", "0"))
    if size < 2:
        yield Finding("error", f"MaxArraySize = {size}: no job arrays", "ask the site")
    elif profile.max_array_size and profile.max_array_size > size:
        yield Finding(
            "error",
            f"MaxArraySize = {size}, the profile says {profile.max_array_size}",
            "take max_array_size out of it",
        )
    else:
        yield Finding("OK", f"MaxArraySize = {size}, MaxJobCount = {settings.get('MaxJobCount', '?')}")
    preempting = settings.get("PreemptType", "preempt/none")
    told = "preempt_send_user_signal" in settings.get("SlurmctldParameters", "")
    if preempting.endswith("none"):
        yield Finding("OK", "jobs are not preempted")
    elif "CANCEL" in settings.get("PreemptMode", ""):
        yield Finding("warning", "preempted jobs are cancelled", "`submit` again when `status` says failed")
    elif told:
        yield Finding("OK", "preempted jobs get USR2 and are requeued with their state saved")
    else:
        yield Finding("OK", "preempted jobs get SIGTERM, save their state and are requeued")
    kill = settings.get("KillWait", "").split()
    if kill and kill[0].isdigit() and int(kill[0]) < 10:
        yield Finding(
            "warning",
            f"KillWait = {kill[0]} s: a cancelled task may be killed before its state is saved",
            "then it goes on from its last checkpoint (recover.checkpoint_seconds)",
        )


def _accounting() -> Iterator[Finding]:
    try:
        queue.call(["sacct", "-n", "-X", "-o", "JobID", "-S", "now"])
        yield Finding("OK", "accounting answers")
    except queue.QueueError:
        yield Finding("OK", "no accounting; `status` takes the run's markers, the queue and what tasks told")


def _accepted(profile: Profile, stage: Stage, folder: Path) -> Finding:
    """Would Slurm take the stage's job? `sbatch --test-only` submits nothing."""
    body = _script(profile, stage, "true", str(folder.absolute() / "doctor.out"))
    with outside_any_job():
        done = subprocess.run(
            ["sbatch", "--test-only"], input=body, capture_output=True, text=True, timeout=queue.SECONDS, check=False
        )
    said = " ".join(done.stderr.split()).removeprefix("sbatch: ")
    if done.returncode == 0:
        return Finding("OK", f"{stage}: {said}")
    return Finding("error", f"{stage}: {said}", "set partition, account, qos, gpus, memory or minutes in the profile")


def _script(profile: Profile, stage: Stage, command: str, output: str, folders: tuple[str, ...] = ()) -> str:
    return text(
        Script(
            stage=stage,
            title=("delt-hpc doctor",),
            name="delt-doctor",
            command=command,
            signal="USR2",
            output=output,
            workdir=str(Path.cwd()),
            folders=folders,
        ),
        profile,
    )


def _job(profile: Profile, folder: Path, wait: float) -> Iterator[Finding]:
    """A job of the stage recover that runs `delt_hpc.launch.probe`."""
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    question, answer, log = (folder / f".doctor-{token}.{kind}" for kind in ("ask", "json", "out"))
    write_text(question, token)
    shown = (str(folder), str(Path.cwd()))
    python = interpreter(profile, shown, str(Path.cwd()), sys.executable)
    work = f"{python} -m delt_hpc.launch.probe {shlex.quote(str(question))} {shlex.quote(str(answer))}"
    body = _script(profile, "recover", work, str(log), shown)
    try:
        with outside_any_job():
            said = subprocess.run(
                ["sbatch", "--parsable"], input=body, capture_output=True, text=True, timeout=queue.SECONDS, check=False
            )
        if said.returncode:
            yield Finding("error", said.stderr.strip(), "see the lines above")
            return
        number = said.stdout.strip().partition(";")[0]
        yield from _answered(number, answer, log, wait, profile)
    finally:
        for path in (question, answer, log):
            path.unlink(missing_ok=True)


def _answered(number: str, answer: Path, log: Path, wait: float, profile: Profile) -> Iterator[Finding]:
    end = time.monotonic() + wait
    while not answer.exists():
        entry = queue.queued().get(number)
        if entry and not entry.live and not answer.exists():
            time.sleep(2 * _POLL_SECONDS)  # a shared disk may show the file late
            if not answer.exists():
                tail = log.read_text(errors="replace")[-500:] if log.exists() else "it has left no log here"
                remedy = "is the folder on a disk that nodes share, and the interpreter or image too?"
                yield Finding("error", f"job {number} ended {entry.state} without an answer: {tail.strip()}", remedy)
                return
        if time.monotonic() > end:
            queue.cancel([number])
            state = f"{entry.state} {entry.reason}" if entry else "unknown"
            yield Finding(
                "warning", f"job {number} has not answered in {wait:.0f} s ({state})", "give it longer: --wait"
            )
            return
        time.sleep(_POLL_SECONDS)
    yield from judge_answer(json.loads(answer.read_text(encoding="utf-8")), profile)


def judge_answer(answer: dict[str, Any], profile: Profile) -> Iterator[Finding]:
    """What the job found on its node."""
    yield Finding("OK", f"a job ran on {answer['host']} and sees the shared folder")
    if answer["version"] == VERSION:
        yield Finding("OK", f"delt-hpc {VERSION} there too")
    else:
        remedy = "rebuild the image, or set python: in the profile"
        yield Finding("error", f"delt-hpc {answer['version']} there, {VERSION} here", remedy)
    yield from environment.judge(answer["environment"], gpus=bool(profile.resources("recover").gpus))
    if profile.apptainer and not answer["scontrol"]:
        yield Finding("OK", "no scontrol inside: tasks are requeued by the script outside")
