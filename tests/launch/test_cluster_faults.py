"""A run on a real Slurm cluster recovers when its tasks, nodes and daemons are killed or stopped."""

import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.cluster_runs import LaunchedRun

pytestmark = pytest.mark.slow

# The first task that starts sleeps before Python handles any signal.
SLOW_START = """
import pathlib, sys, time
if "submitit.core._submit" in sys.orig_argv and not pathlib.Path("{started}").exists():
    pathlib.Path("{started}").touch()
    time.sleep(20)
"""
RECOVERY = [f"recover {index:05d}-{index:05d}" for index in range(4)]


def test_killed_requeued_preempted_cancelled(selected: "LaunchedRun", expected: dict[str, bytes]) -> None:
    """Two tasks resume by themselves. `status` names the others and what depends on them; `submit` takes just these."""
    run, cluster = selected.with_profile("once.yaml", retries=0), selected.cluster
    submitted = run.submit()  # more tasks than MaxArraySize
    assert "recover-00000-00001-toy, 2 tasks" in submitted
    assert "recover-00002-00003-toy, 2 tasks" in submitted
    jobs = jobs_of(run)
    run.hold(jobs)
    assert run.submit().splitlines()[0] == "live jobs work on all that is missing"

    with run.following("recover") as followed:
        cluster.send(jobs[0], signal.SIGKILL)
        # A writer of results was killed, its half a file is left; then the task is requeued.
        (run.root / "launch" / "work" / f"{jobs[1]}_0_result.pkl.save_tmp").write_bytes(b"half a")
        cluster.run("scontrol", "requeue", jobs[1])
        node = cluster.queue()[jobs[2]].node
        cluster.submit("-p", "high", "--exclusive", "-w", node, "--output=/dev/null", "--wrap=true")
        assert f"recover-00003-00003: {jobs[3]} cancelled\n" in run.call("cancel", run.root, "--classes", "3-3")
        cluster.wait_empty()
    for index, turn in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)):
        log = run.root / "logs" / f"recover-{index:05d}-{index:05d}.{jobs[index]}.r{turn}.log"
        assert f"==> {log} <==" in followed
        assert any(
            re.match(rf"recover-{index:05d}-\d+: job {jobs[index]}, restart {turn}, on n\d$", x) for x in followed
        )

    rows = run.tasks(code=4)
    assert {name: rows[name]["state"] for name in RECOVERY} == dict(
        zip(RECOVERY, ("failed", "done", "done", "stopped"), strict=True)
    )
    assert rows[RECOVERY[0]]["message"].startswith("FAILED")
    assert rows[RECOVERY[3]]["message"].startswith("CANCELLED")
    assert [rows[name]["restarts"] for name in RECOVERY] == [0, 1, 1, 0]
    # Slurm cancels what depends on a failed task.
    assert rows["aggregate all"]["message"] == rows["report all"]["message"] == "CANCELLED"

    again = run.submit().splitlines()
    assert [line.partition(": ")[2] for line in again[:-1]] == [
        "recover-00000-00003-toy, 2 tasks",
        "aggregate-toy, 1 task",
        "report-toy, 1 task",
    ]
    cluster.wait_empty()
    assert set(run.states(code=0).values()) == {"done"}
    assert run.distilled() == expected


def test_time_limits_and_loss_of_controller_and_node(selected: "LaunchedRun", expected: dict[str, bytes]) -> None:
    """All tasks resume by themselves, except one that is killed at its time limit without a signal before."""
    cluster = selected.cluster
    # A task a node. Up to ten minutes submitit takes every warning for the time limit's.
    run = selected.with_profile("short.yaml", cpus=2, minutes=9)
    assert "recover-00000-00003-toy, 3 tasks" in run.submit("--stages", "recover", "--classes", "3,0,2-2")
    # No warning: Slurm sends SIGCONT with any, which would let the held process finish before its limit. At the limit
    # SIGTERM comes before SIGCONT, so the process stops when it wakes.
    deaf = selected.with_profile("deaf.yaml", cpus=2, sbatch=["--signal=USR2@0"])
    assert "recover-00001-00001-toy, 1 task" in deaf.submit("--stages", "recover", "--classes", "1")
    run.submit("--stages", "aggregate,report")  # after both
    jobs = jobs_of(run)
    run.hold(jobs)

    cluster.stop_daemon("slurmctld", signal.SIGKILL)
    assert "Slurm does not answer" in run.call("status", run.root, code=7)
    assert "Unable to contact slurm controller" in run.submit(code=6)
    cluster.send(jobs[3], signal.SIGCONT)  # and it ends while nobody listens
    cluster.wait(lambda: not cluster.processes(jobs[3]), "the end of class 3")
    cluster.up()

    # Slurm looks at time limits every 30 s, and warns up to 30 s early.
    for index, minutes in ((0, 2), (1, 1)):
        limit = cluster.minutes_run(jobs[index]) + minutes
        cluster.run("scontrol", "update", f"JobId={jobs[index]}", f"TimeLimit={limit}")

    # A node is lost to Slurm, which starts its task elsewhere, while the old process goes on there.
    node, lost = cluster.queue()[jobs[2]].node, cluster.processes(jobs[2])
    cluster.stop_daemon(node, signal.SIGKILL)
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    for process in lost:
        os.kill(process, signal.SIGCONT)

    cluster.wait_empty()
    cluster.up()
    rows = run.tasks(code=4)
    assert [rows[name]["state"] for name in RECOVERY] == ["done", "failed", "done", "done"]
    assert rows[RECOVERY[1]]["message"].startswith("TIMEOUT")
    assert (
        rows[RECOVERY[0]]["restarts"] == 1 and rows[RECOVERY[2]]["restarts"] >= 1 and not rows[RECOVERY[3]]["restarts"]
    )
    assert "(19 remaining timeouts)" in next((run.root / "logs").glob("recover-00000-00000.*.r0.log")).read_text()
    run.submit()
    cluster.wait_empty()
    assert set(run.states(code=0).values()) == {"done"}
    assert run.distilled() == expected


def test_a_killed_task_is_retried_and_a_failed_one_submitted_again_while_others_run(
    selected: "LaunchedRun", expected: dict[str, bytes]
) -> None:
    run, cluster = selected.with_profile("once.yaml", retries=1), selected.cluster
    run.submit()
    jobs = jobs_of(run)
    run.hold(jobs)
    # What the kernel does when memory runs out. The task is started again, once.
    cluster.send(jobs[0], signal.SIGKILL)
    second = run.root / "logs" / f"recover-00000-00000.{jobs[0]}.r1.log"
    cluster.wait(second.exists, "the second start of class 0")
    cluster.send(jobs[0], signal.SIGKILL)
    cluster.wait_state(jobs[0], "FAILED")
    row = run.tasks(code=4)[RECOVERY[0]]
    assert (row["state"], row["restarts"]) == ("failed", 1)
    assert len(row["restarted"]) == 1 and row["restarted"][0].startswith("was killed, or its node failed on n")
    again = run.submit()
    assert "recover-00000-00000-toy, 1 task" in again
    assert "aggregate waits for the new jobs too" in again
    assert "aggregate-toy" not in again
    for job in (jobs[1], jobs[2], jobs[3]):
        cluster.send(job, signal.SIGCONT)
    cluster.wait_empty()
    assert set(run.states(code=0).values()) == {"done"}
    assert run.distilled() == expected


def test_a_task_that_is_preempted_while_python_starts_is_requeued(
    selected: "LaunchedRun", tmp_path: Path, expected: dict[str, bytes]
) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_START.format(started=tmp_path / "started"))
    path = f"{tmp_path / 'slow'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    run, cluster = selected.with_profile("slow.yaml", environment=variables), selected.cluster
    run.submit("--stages", "recover", "--classes", "0-0")
    cluster.wait((tmp_path / "started").exists, "the start of Python")
    (job,) = (job.id for job in cluster.queue().values() if job.state == "RUNNING")
    cluster.run("scancel", "--signal=USR2", job)  # as Slurm does before it preempts the job
    cluster.wait_empty()
    row = run.tasks(code=5)[RECOVERY[0]]
    assert (row["state"], row["restarts"]) == ("done", 1)
    run.submit()
    cluster.wait_empty()
    assert run.distilled() == expected


def test_a_task_whose_node_has_lost_its_gpu_moves_to_another_node_and_gives_up_after_some(
    selected: "LaunchedRun",
) -> None:
    run, cluster = selected.with_profile("gpu.yaml", gpus=1), selected.cluster
    auto = ("--set", "machine.device=auto")
    run.submit("--stages", "recover", "--classes", "0-0", *auto)
    cluster.wait_empty()
    row = run.tasks(code=4)[RECOVERY[0]]
    assert (row["state"], row["restarts"]) == ("failed", 3)
    assert re.search(r"the job requests a GPU, but torch sees none on n\d", row["message"])
    events = (run.root / "launch" / "tasks" / "recover-00000-00000.jsonl").read_text().splitlines()
    nodes = [event["host"] for event in map(json.loads, events) if event["event"] == "lost_gpu"]
    assert len(nodes) == 4 and len(set(nodes)) >= 3, nodes
    assert not (run.root / "recover").exists()


def jobs_of(run: "LaunchedRun") -> dict[int, str]:
    """The job of each class's recovery."""
    rows = run.tasks(code=3)
    return {index: rows[name]["job"] for index, name in enumerate(RECOVERY)}
