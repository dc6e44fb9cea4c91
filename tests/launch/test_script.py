"""The text that Slurm gets, profile by profile; `GOLDEN=write pytest tests/launch/test_script.py` writes it anew."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delt_hpc.config.schema import Stage
from delt_hpc.launch import profile, submit
from delt_hpc.launch.containers import interpreter, request_program, requeue_on_request
from delt_hpc.launch.profile import Profile
from delt_hpc.launch.script import (
    COMPILED,
    Script,
    place_task,
    requeue_if_killed,
    stage_script,
    text,
)

Sbatch = Callable[..., "subprocess.CompletedProcess[str]"]

GOLDEN = Path(__file__).parent / "golden"
STAGE = Path(__file__).parents[2] / "slurm" / "stage.sbatch"
EXOTIC = {
    "partition": "a,b",
    "account": "proj'ect",
    "qos": "high",
    "constraint": "h100|h200",
    "gpus": 2,
    "gpu_flag": "gres",
    "gpu_type": "h200",
    "memory_gib": 100,
    "sbatch": ["--exclude=n[1-3]", "--mail-type=FAIL"],
    "srun": ["--export=ALL", "--cpu-bind=none"],
    "setup": ["module load cuda/13", "ulimit -n 4096"],
    "environment": {"NAME": "with 'quotes' and $dollar"},
    "wckey": "key",
    "python": "nice python3",
    "scratch": "$LOCAL/me",
}


def example(site: Profile, stage: Stage, elements: int | None) -> str:
    """A job of a run in a folder whose name needs quotes."""
    root, workdir = "/shared/my runs/digits", "/home/someone/work"
    folders = (root, workdir, "/shared/data")
    python = interpreter(site, folders, workdir, "/shared/venv/bin/python")
    return text(
        Script(
            stage=stage,
            title=(f"digits: {stage}",),
            name=f"digits-{stage}",
            command=submit.command(python, Path(root) / "launch" / "work"),
            signal="USR2",
            output=f"{root}/logs/%x.%A_%a.out",
            workdir=workdir,
            array=elements,
            parallel=min(elements or 1, site.resources(stage).parallel),
            after="afterok:12:15" if elements else "",
            folders=folders,
            comment="delt-hpc:TOKEN",
            before=(*place_task(f"{root}/launch/work", "TOKEN"), "export SUBMITIT_EXECUTOR=slurm"),
            notes_signals=True,
            fallback=f"'{root}/launch/work'",
            compiled=f"'{root}/{COMPILED}'",
            after_command=(
                *(requeue_on_request(f"{root}/launch/work") if site.in_container else ()),
                *requeue_if_killed(f"{root}/launch/work", site.retries),
            ),
        ),
        site,
    )


def check(name: str, content: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(content, encoding="utf-8")
    assert content == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", profile.names())
def test_every_profile(name: str) -> None:
    site = profile.load(name)
    check(f"{name}.sbatch", example(site, "recover", 250) + "\n" + example(site, "select", None))


def test_every_key_of_a_profile() -> None:
    check("exotic.sbatch", example(profile.parse(EXOTIC, "x"), "evaluate", 3))


@pytest.mark.parametrize(
    ("flag", "kind", "option"),
    [
        ("gpus-per-node", None, "--gpus-per-node=2"),
        ("gpus-per-task", "h200", "--gpus-per-task=h200:2"),
        ("gpus", "h200", "--gpus=h200:2"),
        ("gres", None, "--gres=gpu:2"),
        ("gres", "h200", "--gres=gpu:h200:2"),
    ],
)
def test_gpus_are_requested_by_the_sites_option(flag: str, kind: str | None, option: str) -> None:
    site = profile.parse({"gpus": 2, "gpu_flag": flag, "gpu_type": kind}, "x")
    assert f"#SBATCH {option}\n" in example(site, "recover", None)
    none = profile.parse({"gpus": 0, "gpu_flag": flag, "gpu_type": kind}, "x")
    assert "gpu" not in example(none, "recover", None)


def test_the_stage_script_is_what_the_function_makes() -> None:
    remedy = "python -m delt_hpc.launch.script >slurm/stage.sbatch"
    assert STAGE.read_text(encoding="utf-8") == stage_script(), remedy


@pytest.mark.parametrize("path", [STAGE, *GOLDEN.glob("*.sbatch")], ids=lambda path: path.name)
def test_bash_accepts_the_script(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.fixture
def sbatch(tmp_path: Path) -> Sbatch:
    """Runs a script with arguments and variables, with a srun that is this shell text."""

    def run(script: Path, *arguments: str, srun: str = 'echo "$@"', **environment: str) -> Any:
        program = tmp_path / "bin" / "srun"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{srun}\n")
        program.chmod(0o755)
        given = {"PATH": f"{program.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "TMPDIR": str(tmp_path)}
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, env=given | environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("name", ["USR2", "TERM"])
def test_a_signal_before_python_handles_it_is_noted_and_does_not_end_the_task(
    sbatch: Sbatch, tmp_path: Path, name: str
) -> None:
    command = tmp_path / "command"
    command.write_text(
        f'#!/bin/sh\nuntil [ -s "$DELT_EARLY_SIGNALS" ]; do kill -{name} $$ $PPID; sleep 0.1; done\n'
        'head -n 1 "$DELT_EARLY_SIGNALS"; exit 5\n'
    )
    command.chmod(0o755)
    script = tmp_path / "job.sbatch"
    job = Script("select", (), "job", str(command), "USR2", "job.out", notes_signals=True)
    script.write_text(text(job, profile.parse({}, "x")))
    done = sbatch(script, srun='while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"', SLURM_CPUS_PER_TASK="1")
    assert (done.returncode, done.stdout) == (5, f"{name}\n"), done.stderr


@pytest.mark.parametrize(("element", "wanted"), [("0", "0-3"), ("2", "8-9")])
def test_ranges_of_the_stage_script_end_with_the_last_class(sbatch: Sbatch, element: str, wanted: str) -> None:
    done = sbatch(STAGE, "recover", "my config", "/the run", "10", "4", SLURM_ARRAY_TASK_ID=element)
    assert done.stdout.strip().endswith(f"delt-hpc recover my config --run /the run --classes {wanted} --quiet")


@pytest.mark.parametrize(("element", "wanted"), [(None, "a-1-random-soft"), ("1", "b-2-random-soft"), ("2", "")])
def test_a_task_of_the_stage_script_evaluates_one_trial(sbatch: Sbatch, element: str | None, wanted: str) -> None:
    array = {"SLURM_ARRAY_TASK_ID": element} if element else {}
    done = sbatch(STAGE, "evaluate", "c", "/the run", "a-1-random-soft", "b-2-random-soft", **array)
    assert done.stdout.strip().endswith(f"delt-hpc evaluate c --run /the run --trial {wanted} --quiet")


def test_other_stages_have_no_part(sbatch: Sbatch) -> None:
    done = sbatch(STAGE, "select", "c", "/the run")
    assert done.stdout.strip().endswith("delt-hpc select c --run /the run --quiet")


def test_caches_are_on_a_local_disk_and_deleted_with_the_task(sbatch: Sbatch, tmp_path: Path) -> None:
    local = tmp_path / "of the node"
    local.mkdir()
    tell = (
        'mkdir "$TRITON_CACHE_DIR"; printf "%s\\n" "$TRITON_CACHE_DIR" "$TORCHINDUCTOR_CACHE_DIR" "$DELT_COMPILE_CACHE"'
    )
    done = sbatch(STAGE, "select", "c", "/the run", srun=f"{tell}; exit 5", SLURM_TMPDIR=str(local))
    triton, inductor, compiled = done.stdout.splitlines()
    assert Path(triton).parent.parent == Path(inductor).parent.parent == local
    assert (Path(triton).parent.name.startswith("delt-hpc-7."), compiled) == (True, "/the run/compile-cache")
    assert (done.returncode, list(local.iterdir())) == (5, [])


def test_without_a_local_disk_a_task_uses_the_run_folder(sbatch: Sbatch, tmp_path: Path) -> None:
    run = tmp_path / "the run"
    done = sbatch(STAGE, "select", "c", str(run), srun='echo "$TRITON_CACHE_DIR"', SLURM_TMPDIR=str(tmp_path / "none"))
    assert done.returncode == 0
    assert "none/delt-hpc-7." in done.stderr
    assert Path(done.stdout.strip()).parent.parent == run
    assert list(run.iterdir()) == []


def test_a_task_without_any_disk_does_not_start(sbatch: Sbatch, tmp_path: Path) -> None:
    done = sbatch(STAGE, "select", "c", "/dev/null/run", SLURM_TMPDIR=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")


def test_a_request_from_inside_a_container_requeues_outside_and_keeps_the_exit_code(tmp_path: Path) -> None:
    work, programs = tmp_path / "launch work", tmp_path / "bin"
    work.mkdir()
    programs.mkdir()
    inside, outside, lines = programs / "inside", programs / "scontrol", requeue_on_request(str(work))
    inside.write_text(request_program(str(work)))
    outside.write_text('#!/bin/sh\necho "$@"\n')
    for program in (inside, outside):
        program.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "20"}
    body = "\n".join(['[ -z "$ask" ] || inside requeue "$ask"', "rc=7", *lines, "exit $rc"])
    array = {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "3"}
    for more, output in (
        ({"ask": "20"}, "requeue 20\n"),
        ({"ask": "15_3", **array}, "requeue 15_3\n"),
        ({"ask": "15_4", **array}, ""),
        ({}, ""),
    ):
        done = subprocess.run(
            [shutil.which("bash") or "bash", "-c", body],
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (7, output)


@pytest.mark.parametrize(
    ("rc", "state", "requeued"),
    [
        (137, "RUNNING", [True, True, False]),  # killed
        (253, "RUNNING", [True, True, False]),  # Slurm saw that memory ran out
        (137, "CANCELLED", [False]),
        (137, "TIMEOUT", [False]),
        (2, "RUNNING", [False]),  # a user's error
        (1, "RUNNING", [False]),
        (0, "RUNNING", [False]),
    ],
)
def test_a_killed_task_is_requeued_some_times(tmp_path: Path, rc: int, state: str, requeued: list[bool]) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in (("squeue", f"[ $3 = 15_3 ] && echo {state}"), ("scontrol", 'echo "$@"')):  # fakes of Slurm's
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "20"}
    environment |= {"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "3"}
    body = "\n".join([f"rc={rc}", *requeue_if_killed(str(tmp_path), 2), "exit $rc"])
    for expected in requeued:
        done = subprocess.run(["bash", "-c", body], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (rc, "requeue 15_3\n" if expected else ""), done.stderr
