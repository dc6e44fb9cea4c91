"""Whole runs on a real Slurm cluster."""

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.cluster_runs import LaunchedRun, RunOn
    from helpers.slurm_cluster import Cluster

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "slurm" / "stage.sbatch"


def test_submitted_followed_finished(accounted_cluster: "Cluster", run_on: "RunOn", expected: dict[str, bytes]) -> None:
    run = run_on(accounted_cluster)
    submitted = run.submit()
    assert ": rank-00000-00003-toy, 1 task\n" in submitted  # an array of one
    assert ": recover-00000-00003-toy, 4 tasks\n" in submitted
    assert set(run.states(code=3).values()) <= {"pending", "running", "done"}
    last = run.call("status", run.root, "--watch", "--every", "3").strip().splitlines()[-1]
    assert last.strip() == "10 done"
    assert run.distilled() == expected
    assert (run.root / "report" / "report.html").exists()
    assert run.submit().splitlines() == ["nothing is missing", "10 done"]
    assert "recover-00002-00002: job " in run.call("logs", run.root, "2-2")


def test_a_job_of_its_own_compiles_before_recover_tasks_start(selected: "LaunchedRun") -> None:
    compiled = ("--stages", "recover", "--set", "recover.compile=true")
    assert "recover-warm-up-toy, 1 task" in selected.submit(*compiled)
    rows = selected.tasks(code=3)
    assert rows["recover warm-up"]["state"] in ("pending", "running")
    assert "Dependency" in rows["recover 00000-00000"]["message"]
    assert selected.submit(*compiled).splitlines()[0] == "live jobs work on all that is missing"
    selected.cluster.wait_empty()
    states = selected.states(code=5)
    assert {states[f"recover {index:05d}-{index:05d}"] for index in range(4)} == {"done"}
    assert "recover warm-up" not in states
    assert len(list((selected.root / "compile-cache").glob("*/files.tar"))) == 1


def test_submitting_from_inside_an_array_does_not_inherit_it(selected: "LaunchedRun", undisturbed: Path) -> None:
    for name in ("recover", "distilled"):
        shutil.copytree(undisturbed / name, selected.root / name)
    command = f"{sys.executable} -m delt_hpc.cli submit {selected.config} --cluster {selected.profile}"
    log = selected.root / "outer.log"
    outer = selected.cluster.submit(
        "--array=2-2", f"--output={log}", f"--chdir={Path.cwd()}", f"--wrap={command} --run {selected.root}"
    )
    selected.cluster.wait_state(f"{outer}_2", "COMPLETED")
    assert "report-toy, 1 task" in log.read_text()
    selected.cluster.wait_empty()
    assert set(selected.states(code=0).values()) == {"done"}


@pytest.mark.parametrize(
    ("where", "recorded", "state", "message"),
    [
        ("cluster", False, "lost", "never started"),
        ("cluster", True, "stopped", "cancelled"),
        ("accounted_cluster", False, "stopped", "CANCELLED"),
    ],
)
def test_a_job_that_slurm_has_forgotten(
    request: pytest.FixtureRequest, selected: "LaunchedRun", where: str, recorded: bool, state: str, message: str
) -> None:
    cluster: Cluster = request.getfixturevalue(where)
    run, wanted = replace(selected, cluster=cluster), ("--stages", "recover", "--classes", "1-1")
    with cluster.setting(MinJobAge=2):  # its end opens the partition again
        cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
        run.submit(*wanted)
        job = run.tasks(code=3)["recover 00001-00001"]["job"]
        if recorded:
            assert f"recover-00001-00001: {job} cancelled" in run.call("cancel", run.root)
        else:
            cluster.run("scancel", job)
        cluster.wait(lambda: job not in cluster.queue(), "the job to be forgotten")
        row = run.tasks(code=4 if state == "lost" else 5)["recover 00001-00001"]
        assert (row["state"], row["message"]) == (state, message)
        assert "recover-00001-00001-toy, 1 task" in run.submit(*wanted)
        run.call("cancel", run.root)


def test_the_stage_script(selected: "LaunchedRun", expected: dict[str, bytes], undisturbed: Path) -> None:
    """Without the launcher: stages run one after another, and a task that gets SIGTERM is requeued and resumes."""
    cluster, root = selected.cluster, selected.root
    (trial,) = (folder.name for folder in (root / "evaluate").iterdir())
    shutil.rmtree(root / "evaluate")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    small = ("--cpus-per-task=1", "--mem=500M", "--gpus-per-node=0", f"--export=ALL,OMP_NUM_THREADS=1,PATH={path}")

    def sbatch(stage: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        return cluster.submit(*small, f"--chdir={root}", *options, SCRIPT, stage, selected.config, root, *arguments)

    recover = sbatch("recover", "4", "2", options=("--array=0-1%2", "--output=recover.%a.out"))
    aggregate = sbatch("aggregate", options=(f"--dependency=afterok:{recover}",))
    evaluate = sbatch("evaluate", trial, options=("--array=0", f"--dependency=afterok:{aggregate}"))
    cluster.wait(selected.checkpoint(2).exists, "class 2 at work")
    cluster.send(f"{recover}_1", signal.SIGTERM)
    cluster.wait_empty()
    assert [cluster.state(job) for job in (f"{recover}_1", aggregate, f"{evaluate}_0")] == ["COMPLETED"] * 3
    assert "stopped on request" in (root / "recover.1.out").read_text()
    assert selected.distilled() == expected
    again = root / "evaluate" / trial / "history.csv"
    assert again.read_bytes() == (undisturbed / "evaluate" / trial / "history.csv").read_bytes()
