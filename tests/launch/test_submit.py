"""Submission without Slurm: what would be submitted, what is refused, and processes of this machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.program import Program

from delt_hpc.config.load import dump_config, load_config
from delt_hpc.errors import UserError
from delt_hpc.launch import environment, queue, records, request
from delt_hpc.launch.plan import Task
from delt_hpc.launch.process import ProcessIdentity
from delt_hpc.launch.records import LaunchFolder, exclusive
from delt_hpc.run.folder import RunFolder, write_text


def contents(folder: Path, suffix: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(f"*{suffix}")}


def test_dry_run_prints_the_scripts_without_slurm_and_writes_nothing(
    config: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = program("submit", config, "--cluster", "generic-gpu", "--dry-run", "--run", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert answer.out.count("#!/bin/bash\n") == 7
    assert "#SBATCH --job-name=recover-00000-00003-toy\n" in answer.out
    assert "#SBATCH --dependency=afterok:<squeeze>:<select>\n" in answer.out
    assert f"-m submitit.core._submit {tmp_path}/run/launch/work\n" in answer.out
    assert not (tmp_path / "run").exists()


def test_recover_tasks_wait_for_the_warm_up_which_waits_for_nothing(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ("submit", "imagenet-1k-resnet18-ipc50", "--cluster", "generic-gpu", "--dry-run")
    scripts = program(*arguments).out.split("#!/bin/bash\n")[1:]
    names = [re.search(r"--job-name=(\S+)-imagenet-1k-resnet18-ipc50", script)[1] for script in scripts]  # type: ignore[index]
    warm_up, recover = scripts[names.index("recover-warm-up")], scripts[names.index("recover-00000-00999")]
    assert "--dependency" not in warm_up and "--gpus-per-node=1\n" in warm_up
    assert "--dependency=afterok:<squeeze>:<select>,afterany:<warm-up>\n" in recover
    assert "--dependency=afterok:<recover>\n" in scripts[names.index("aggregate")]
    write_text(tmp_path / "site.yaml", "gpus: 1\nenvironment: {DELT_COMPILE_CACHE: /shared}\n")
    elsewhere = program(*arguments[:3], tmp_path / "site.yaml", "--dry-run")
    assert "recover-warm-up" not in elsewhere.out


def test_a_part_of_a_run_succeeds_and_the_cluster_may_be_named_by_a_variable(
    run: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELT_CLUSTER", "local")
    assert program("submit", run, "--stages", "select") == (0, "nothing is missing\n1 done\n", "")
    assert program("submit", run, "--stages", "select", "--dry-run") == (0, "nothing is missing\n", "")


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
    assert (refused.code, "another submission of this run is in progress" in refused.err) == (2, True), refused
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    output, _ = process.communicate()
    assert (process.returncode, output.splitlines()[-1]) == (130, "recover-00000-00001: stopped")
    events = run / "launch" / "tasks" / "recover-00000-00001.jsonl"
    assert [json.loads(line)["event"] for line in events.read_text().splitlines()] == ["started", "stopped"]
    status = program("status", run)
    assert (status.code, "stopped; resumes when started again" in status.out) == (5, True)
    assert "stopped on request; started again, the task resumes" in program("logs", run, "recover", "-n", "1").out
    assert "no failed task" in program("logs", run, "--failed").err


@pytest.mark.slow
def test_processes_of_this_machine_are_capped_and_give_the_same_bytes(
    config: Path, run: Path, tmp_path: Path, program: Program
) -> None:
    small = ("--set", "recover.batch_size=2")  # one class in each batch
    single, parallel = run, tmp_path / "parallel"
    shutil.copytree(single, parallel)
    assert program("recover", single, *small, "--quiet").code == 0
    answer = program("submit", parallel, "--cluster", "local", "--processes", "2", "--classes", "0-2", *small)
    assert answer.code == 0, answer.err  # later stages were not requested
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
    process = ProcessIdentity(1, "another boot", "pid:[1]", 1)
    elsewhere = records.Submission(
        "local", "local", "elsewhere", records.now(), "1", False, "squeeze", (task,), 4, process
    )
    records.write_submission(LaunchFolder(run), elsewhere)
    records.append_event(LaunchFolder(run), task, records.new_event("started", "1", 0))
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
    assert request.warnings({"SBATCH_PARTITION": "x", "HOME": "/"})[0].startswith("SBATCH_PARTITION: ")
    assert request.warnings({"HOME": "/"}) == []


def test_nodes_that_have_lost_their_gpu_are_excluded(config: Path, tmp_path: Path, program: Program) -> None:
    folder, task = LaunchFolder(RunFolder(tmp_path / "run")), Task("squeeze")
    for host in ("n7", "n2"):
        records.append_event(folder, task, replace(records.new_event("lost_gpu", "1", 0), host=host))
    write_text(tmp_path / "site.yaml", "gpus: 1\nsbatch: ['--exclude=n9']\nstages: {select: {gpus: 0}}\n")
    arguments = ("submit", config, "--cluster", tmp_path / "site.yaml", "--run", tmp_path / "run", "--dry-run")
    scripts = program(*arguments).out.split("#!/bin/bash\n")[1:]
    assert ["--exclude=n9,n2,n7\n" in script for script in scripts] == [True, True, False, True, True, True, True]


@pytest.mark.parametrize(
    ("visible", "found"),
    [("", []), ("2,3", ["2", "3"]), ("GPU-4a,MIG-7b", ["GPU-4a", "MIG-7b"]), ("0", ["0"])],
)
def test_gpus_of_this_process(monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment.visible_gpus() == found


def test_gpus_that_cannot_be_listed_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi there
    monkeypatch.setattr(environment, "DRIVER", tmp_path)
    with pytest.raises(UserError, match="cannot tell which GPUs"):
        environment.visible_gpus()
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "none")
    assert environment.visible_gpus() == []


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    folder = LaunchFolder(RunFolder(tmp_path))
    write_text(folder.jobs / "1.json", "{")
    with pytest.raises(UserError, match="is damaged"):
        records.submissions(folder)


def test_a_job_is_on_record_before_it_is_submitted_and_found_after_ctrl_c(
    config: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts: list[str] = []

    def interrupted(script: str) -> str:
        scripts.append(script)
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "submit", interrupted)
    monkeypatch.setattr(queue, "max_array_size", lambda: 1001)
    assert program("submit", config, "--cluster", "generic-cpu", "--run", tmp_path / "run").code == 130
    ((_, intent),) = records.intents(LaunchFolder(RunFolder(tmp_path / "run")))
    assert f"#SBATCH --comment=delt-hpc:{intent.token}\n" in scripts[0]
    assert f"#SBATCH --job-name={intent.name}\n" in scripts[0]
    answers = {"%F|%k": f"31|delt-hpc:{intent.token}\n", queue._SQUEUE_FORMAT: "31|PENDING||0:00|Priority\n"}
    monkeypatch.setattr(queue, "call", lambda *command: answers.get(command[-1], ""))
    shown = json.loads(program("status", tmp_path / "run", "--json").out)
    assert (shown["tasks"][0]["job"], shown["tasks"][0]["state"]) == ("31", "pending")
