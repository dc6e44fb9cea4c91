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

from delt_hpc.config.load import dump_config, load_config, parse_config
from delt_hpc.errors import UserError
from delt_hpc.launch import executor, local, records, submit, work
from delt_hpc.launch.plan import Task
from delt_hpc.launch.records import LaunchFolder, exclusive
from delt_hpc.run.folder import RunFolder, write_text

TREE = {
    "name": "toy",
    "data": {"name": "toy", "size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "squeeze": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16, "lr": 0.02},
    "select": {"ipc": 2},
    "recover": {"iterations": 4, "round_iterations": 2, "batch_size": 4, "image_format": "png"},
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


def launch(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "delt_hpc.launch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def contents(folder: Path, suffix: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(f"*{suffix}")}


def test_dry_run_prints_the_scripts_where_no_slurm_is_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    done = launch(
        "submit", config, "--cluster", "generic-gpu", "--dry-run", "--run", tmp_path / "run", PATH=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash\n") == 7
    assert "#SBATCH --job-name=toy-recover-00000-00003\n" in done.stdout
    assert "#SBATCH --dependency=afterany:<squeeze>:<select>\n" in done.stdout
    assert f"-m submitit.core._submit {tmp_path}/run/launch/work\n" in done.stdout
    assert not (tmp_path / "run").exists()


def test_without_slurm_submission_is_refused(config: Path, tmp_path: Path) -> None:
    done = launch("submit", config, "--cluster", "generic-gpu", "--run", tmp_path / "run", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (6, "error: there is no scontrol on this machine\n")


def test_the_launcher_starts_without_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, delt_hpc.launch as package\n"
        "for module in pkgutil.iter_modules(package.__path__, 'delt_hpc.launch.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_whole_run_inline_then_nothing_is_missing(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = launch("submit", config, "--cluster", "inline", "--run", run)
    assert first.returncode == 0, first.stderr
    assert (run / "report" / "report.html").exists()
    again = launch("submit", config, "--cluster", "inline", "--run", run)
    assert (again.returncode, again.stdout) == (0, "nothing is missing\n8 done\n")
    found = launch("status", run, "--json")
    assert (found.returncode, json.loads(found.stdout)["counts"]) == (0, {"done": 8})
    other = launch("submit", run, "--cluster", "inline", "--set", "squeeze.epochs=2", "--stages", "squeeze")
    assert other.returncode == 2
    assert "squeeze.epochs: made with 1, now 2" in other.stderr


def test_processes_stop_on_request_with_their_state_saved_and_go_on(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = launch("submit", config, "--cluster", "inline", "--run", run, "--stages", "squeeze,rank,select")
    assert before.returncode == 5, before.stderr  # later stages were not asked for
    longer = ("--set", "recover.iterations=100000", "--set", "recover.round_iterations=50000")
    command = [sys.executable, "-m", "delt_hpc.launch", "submit", str(run), "--cluster", "local", "--stages", "recover"]
    process = subprocess.Popen([*command, *longer], start_new_session=True, stdout=subprocess.PIPE, text=True)
    told = run / "launch" / "tasks" / "recover-00000-00001.jsonl"
    checkpoint = run / "recover" / "00000-00001" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.1)
    refused = launch("submit", run, "--cluster", "local")
    assert (refused.returncode, "another submission of this run is under way" in refused.stderr) == (2, True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    output, _ = process.communicate()
    assert (process.returncode, output.splitlines()[-1]) == (130, "recover-00000-00001: stopped")
    assert [json.loads(line)["event"] for line in told.read_text().splitlines()] == ["started", "stopped"]
    found = launch("status", run)
    assert (found.returncode, "stopped, state saved" in found.stdout) == (4, True)
    assert "stopped as asked to, state saved" in launch("logs", run, "--failed").stdout


def test_processes_of_this_machine_are_capped_and_give_the_same_bytes(config: Path, tmp_path: Path) -> None:
    single, parallel = tmp_path / "single", tmp_path / "parallel"
    small = ("--set", "recover.batch_size=2")  # a class a batch
    chosen = ("--run", single, "--stages", "squeeze,rank,select,recover", *small)
    before = launch("submit", config, "--cluster", "inline", *chosen)
    assert before.returncode == 5, before.stderr  # later stages were not asked for
    shutil.copytree(single, parallel, ignore=shutil.ignore_patterns("recover", "launch"))
    done = launch("submit", parallel, "--cluster", "local", "--processes", "2", "--classes", "0-2")
    assert done.returncode == 5, done.stderr
    running, most = set(), 0
    for name, _, word in (line.partition(": ") for line in done.stdout.splitlines()):
        running = running | {name} if word == "started" else running - {name}
        most = max(most, len(running))
    assert most == 2
    assert done.stdout.count(": ended\n") == 3
    images, whole = contents(parallel / "recover", ".png"), contents(single / "recover", ".png")
    assert len(images) == 6 and images.items() <= whole.items()


def test_the_run_s_own_configuration_is_followed_and_not_changed_under_live_tasks(config: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    write_text(run.config, dump_config(load_config(str(config), ["recover.batch_size=2"])))
    followed = launch("status", config, "--run", run.root, "--json")
    assert {row["asked"] for row in json.loads(followed.stdout)["tasks"] if row["stage"] == "recover"} == {8}
    task = Task("squeeze")
    there = records.Submission("local", "local", "elsewhere", records.now(), "1", False, "squeeze", (task,), 4)
    records.write_submission(LaunchFolder(run), there)
    refused = launch("submit", config, "--cluster", "inline", "--run", run.root, "--stages", "rank")
    assert refused.returncode == 6
    assert (
        "live jobs were submitted with another configuration:\n    recover.batch_size: made with 2, now 4"
        in refused.stderr
    )


def test_a_stage_whose_input_is_neither_there_nor_coming_is_refused(config: Path, tmp_path: Path) -> None:
    done = launch("submit", config, "--cluster", "inline", "--run", tmp_path / "run", "--stages", "recover")
    assert done.returncode == 6
    assert "recover needs squeeze, select: neither finished nor submitted" in done.stderr


def test_mistakes_have_their_exit_code(config: Path, tmp_path: Path) -> None:
    for arguments in (
        ("submit", config, "--cluster", "nowhere"),
        ("plan", config, "--stages", "rest"),
        ("plan", config, "--classes", "3-1"),
        ("plan", config, "--classes", "0-1,"),
        ("plan", config, "--classes", "0-1,3-4"),  # 4 is beyond the last class
        ("plan", config, "--run", tmp_path / "run", "--classes", "1-2"),
        ("logs", config, "rest"),
    ):
        done = launch(*arguments)
        assert done.returncode == 2, done
        assert done.stderr.startswith("error: ")


def test_one_submission_at_a_time(tmp_path: Path) -> None:
    folder = LaunchFolder(RunFolder(tmp_path))
    with exclusive(folder), pytest.raises(UserError, match="under way"), exclusive(folder):
        pass
    with exclusive(folder):
        pass


def test_nothing_of_a_surrounding_job_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_CONF", "/c"), ("SUBMITIT_EXECUTOR", "slurm")):
        monkeypatch.setenv(name, value)
    with executor.outside_any_job():
        assert "SLURM_ARRAY_TASK_ID" not in os.environ and "SUBMITIT_EXECUTOR" not in os.environ
        assert os.environ["SLURM_CONF"] == "/c"
    assert os.environ["SLURM_ARRAY_TASK_ID"] == "3"


def test_variables_stronger_than_scripts_are_warned_of() -> None:
    assert submit.warnings({"SBATCH_PARTITION": "x", "HOME": "/"})[0].startswith("SBATCH_PARTITION: ")
    assert submit.warnings({"HOME": "/"}) == []


def test_what_comes_when_the_work_is_over_does_not_requeue_it() -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with work._user_signal(called, 60, lambda number, frame: None):
            pass
        signal.raise_signal(signal.SIGUSR2)
        assert called == []
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_half_written_pickles_of_the_job_are_cleared(tmp_path: Path) -> None:
    mine = [tmp_path / "15_1_0_result.pkl.save_tmp", tmp_path / "15_1_submitted.pkl.save_tmp"]
    others = [tmp_path / "15_10_0_result.pkl.save_tmp", tmp_path / "15_1_submitted.pkl"]
    for path in (*mine, *others):
        path.touch()
    work.clear_stale(tmp_path, "15_1")
    assert [path.exists() for path in (*mine, *others)] == [False, False, True, True]


@pytest.mark.parametrize(("visible", "found"), [("", []), ("2,3", [2, 3]), ("GPU-4a", []), ("0", [0])])
def test_gpus_of_this_process(monkeypatch: pytest.MonkeyPatch, visible: str, found: list[int]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.gpus() == found


def test_a_damaged_record_is_no_secret(tmp_path: Path) -> None:
    folder = LaunchFolder(RunFolder(tmp_path))
    write_text(folder.jobs / "1.json", "{")
    with pytest.raises(UserError, match="is damaged"):
        records.submissions(folder)
