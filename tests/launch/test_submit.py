"""Submission without Slurm: what would be submitted, what is refused, and processes of this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.program import Program

from delt_hpc.config.load import dump_config, load_config, parse_config
from delt_hpc.errors import UserError
from delt_hpc.launch import local, records, runner, submit
from delt_hpc.launch.plan import Task
from delt_hpc.launch.records import LaunchFolder, exclusive
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run import stop
from delt_hpc.run.folder import RunFolder, write_text
from delt_hpc.run.progress import Reporter

TREE = {
    "name": "toy",
    "data": {"name": "toy", "size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "squeeze": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16, "lr": 0.02},
    "select": {"ipc": 2},
    "recover": {
        "iterations": 4,
        "round_iterations": 2,
        "batch_size": 4,
        "image_format": "png",
        "checkpoint_seconds": 0.2,
    },
    "evaluate": {"epochs": 1, "seeds": [1], "arms": ["distilled-soft"], "batch_size": 8},
    "machine": {"device": "cpu", "workers": 0},
}


@pytest.fixture
def config(tmp_path: Path, image_folder: Callable[..., Path]) -> Path:
    """A configuration file of a data set of four classes; recovery batches are two classes each."""
    image_folder(tmp_path / "data" / "train", dict.fromkeys("abcd", 4), size=8)
    image_folder(tmp_path / "data" / "val", dict.fromkeys("abcd", 1), size=8)
    data = TREE["data"] | {"root": str(tmp_path / "data")}  # type: ignore[operator]
    write_text(tmp_path / "toy.yaml", dump_config(parse_config(TREE | {"data": data}, "test")))
    return tmp_path / "toy.yaml"


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Path:
    """A run folder of the configuration after squeeze, rank and select."""
    context = open_run(load_config(str(config)), tmp_path / "run", Reporter(quiet=True))
    run_stages(context, ("squeeze", "rank", "select"))
    return tmp_path / "run"


def contents(folder: Path, suffix: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(f"*{suffix}")}


def test_dry_run_prints_the_scripts_without_slurm_and_writes_nothing(
    config: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = program("submit", config, "--cluster", "generic-gpu", "--dry-run", "--run", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert answer.out.count("#!/bin/bash\n") == 7
    assert "#SBATCH --job-name=toy-recover-00000-00003\n" in answer.out
    assert "#SBATCH --dependency=afterany:<squeeze>:<select>\n" in answer.out
    assert f"-m submitit.core._submit {tmp_path}/run/launch/work\n" in answer.out
    assert not (tmp_path / "run").exists()


def test_without_slurm_submission_is_refused(
    config: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = program("submit", config, "--cluster", "generic-gpu")
    assert (answer.code, answer.err) == (6, "error: there is no scontrol on this machine\n")


def test_a_finished_run_has_nothing_to_submit(config: Path, tmp_path: Path, program: Program) -> None:
    run = tmp_path / "run"
    assert program("run", config, "--run", run, "--quiet").code == 0
    assert program("submit", run, "--cluster", "local") == (0, "nothing is missing\n7 done\n", "")
    status = program("status", run, "--json")
    assert (status.code, json.loads(status.out)["counts"]) == (0, {"done": 7})
    other = program("submit", run, "--cluster", "local", "--set", "squeeze.epochs=2", "--stages", "squeeze")
    assert other.code == 2
    assert "squeeze.epochs: made with 1, now 2" in other.err


def test_processes_stop_on_ctrl_c_with_their_state_saved(run: Path, program: Program) -> None:
    longer = ("--set", "recover.iterations=100000", "--set", "recover.round_iterations=50000")
    command = [sys.executable, "-m", "delt_hpc.cli", "submit", run, "--cluster", "local", "--stages", "recover"]
    process = subprocess.Popen([*command, *longer], start_new_session=True, stdout=subprocess.PIPE, text=True)
    checkpoint = run / "recover" / "00000-00001" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.1)
    refused = program("submit", run, "--cluster", "local")
    assert (refused.code, "another submission of this run is in progress" in refused.err) == (2, True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    output, _ = process.communicate()
    assert (process.returncode, output.splitlines()[-1]) == (130, "recover-00000-00001: stopped")
    events = run / "launch" / "tasks" / "recover-00000-00001.jsonl"
    assert [json.loads(line)["event"] for line in events.read_text().splitlines()] == ["started", "stopped"]
    status = program("status", run)
    assert (status.code, "stopped; resumes when started again" in status.out) == (4, True)
    assert "stopped on request; started again, the task resumes" in program("logs", run, "--failed").out


@pytest.mark.slow
def test_processes_of_this_machine_are_capped_and_give_the_same_bytes(
    config: Path, run: Path, tmp_path: Path, program: Program
) -> None:
    small = ("--set", "recover.batch_size=2")  # one class in each batch
    single, parallel = run, tmp_path / "parallel"
    shutil.copytree(single, parallel)
    assert program("recover", single, *small, "--quiet").code == 0
    answer = program("submit", parallel, "--cluster", "local", "--processes", "2", "--classes", "0-2", *small)
    assert answer.code == 5, answer.err  # later stages were not submitted
    running, most = set(), 0
    for name, _, event in (line.partition(": ") for line in answer.out.splitlines()):
        running = running | {name} if event == "started" else running - {name}
        most = max(most, len(running))
    assert most == 2
    assert answer.out.count(": ended\n") == 3
    images, expected = contents(parallel / "recover", ".png"), contents(single / "recover", ".png")
    assert len(images) == 6 and images.items() <= expected.items()


def test_the_run_s_own_configuration_is_used_and_not_changed_under_live_tasks(
    config: Path, tmp_path: Path, program: Program
) -> None:
    run = RunFolder(tmp_path / "run")
    write_text(run.config, dump_config(load_config(str(config), ["recover.batch_size=2"])))
    status = program("status", config, "--run", run.root, "--json")
    assert {row["total"] for row in json.loads(status.out)["tasks"] if row["stage"] == "recover"} == {8}
    task = Task("squeeze")
    elsewhere = records.Submission("local", "local", "elsewhere", records.now(), "1", False, "squeeze", (task,), 4)
    records.write_submission(LaunchFolder(run), elsewhere)
    refused = program("submit", config, "--cluster", "local", "--run", run.root, "--stages", "rank")
    assert refused.code == 6
    assert (
        "live jobs were submitted with another configuration:\n    recover.batch_size: made with 2, now 4"
        in refused.err
    )


def test_a_stage_whose_input_is_neither_there_nor_coming_is_refused(config: Path, program: Program) -> None:
    answer = program("submit", config, "--cluster", "local", "--stages", "recover")
    assert answer.code == 6
    assert "recover needs squeeze, select, which is neither finished nor submitted" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        "submit CONFIG --cluster nowhere",
        "submit CONFIG --cluster inline",
        "plan CONFIG --stages rest",
        "plan CONFIG --classes 3-1",
        "plan CONFIG --classes 0-1,",
        "plan CONFIG --classes 0-1,3-4",  # 4 is beyond the last class
        "plan CONFIG --classes 1-2",  # cuts a batch
        "logs CONFIG rest",
    ],
)
def test_user_errors_have_exit_code_2(config: Path, arguments: str, program: Program) -> None:
    answer = program(*arguments.replace("CONFIG", str(config)).split())
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ")


def test_one_submission_at_a_time(tmp_path: Path) -> None:
    folder = LaunchFolder(RunFolder(tmp_path))
    with exclusive(folder), pytest.raises(UserError, match="in progress"), exclusive(folder):
        pass
    with exclusive(folder):
        pass


def test_variables_that_override_the_scripts_are_reported() -> None:
    assert submit.warnings({"SBATCH_PARTITION": "x", "HOME": "/"})[0].startswith("SBATCH_PARTITION: ")
    assert submit.warnings({"HOME": "/"}) == []


def test_the_signal_is_reported_and_ignored_afterwards() -> None:
    requeued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))
    try:
        with stop.on_signal(), runner._stop_on_user_signal(60, lambda number, frame: None) as signalled:
            assert not signalled() and not stop.requested()
            signal.raise_signal(signal.SIGUSR2)
            assert signalled() and stop.requested()
        signal.raise_signal(signal.SIGUSR2)
        assert requeued == []
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_half_written_pickles_of_the_job_are_cleared(tmp_path: Path) -> None:
    own = [tmp_path / "15_1_0_result.pkl.save_tmp", tmp_path / "15_1_submitted.pkl.save_tmp"]
    others = [tmp_path / "15_10_0_result.pkl.save_tmp", tmp_path / "15_1_submitted.pkl"]
    for path in (*own, *others):
        path.touch()
    runner.clear_stale(tmp_path, "15_1")
    assert [path.exists() for path in (*own, *others)] == [False, False, True, True]


@pytest.mark.parametrize(("visible", "found"), [("", []), ("2,3", [2, 3]), ("GPU-4a", []), ("0", [0])])
def test_gpus_of_this_process(monkeypatch: pytest.MonkeyPatch, visible: str, found: list[int]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.gpus() == found


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    folder = LaunchFolder(RunFolder(tmp_path))
    write_text(folder.jobs / "1.json", "{")
    with pytest.raises(UserError, match="is damaged"):
        records.submissions(folder)
