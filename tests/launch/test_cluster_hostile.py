"""A run on a real Slurm cluster to which much happens at once ends by itself, in the bytes of an undisturbed run."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from helpers.cluster_runs import LaunchedRun

pytestmark = pytest.mark.slow

# Fakes: the first task of the run starts Python slowly, and CUDA fails in every task on n2, as where a GPU is lost.
SITE = """
import os, pathlib, sys, time
if "submitit.core._submit" in sys.orig_argv:
    started = pathlib.Path("{started}")
    if not started.exists():
        started.touch()
        time.sleep(8)
    if os.environ["SLURMD_NODENAME"] == "n2":
        from delt_hpc.run import stop

        def lost():
            raise RuntimeError("CUDA error: unspecified launch failure")

        stop.check = lost
"""


def test_a_hostile_site(selected: "LaunchedRun", tmp_path: Path, expected: dict[str, bytes]) -> None:
    cluster, started = selected.cluster, tmp_path / "started"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE.format(started=started))
    for node in ("n1", "n2", "n3"):
        (tmp_path / "scratch" / node).mkdir(parents=True)  # n4 has none: making a folder fails as on a full disk
    path = f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = yaml.safe_load(selected.profile.read_text())["environment"] | {"PYTHONPATH": path}
    scratch = f"{tmp_path}/scratch/$SLURMD_NODENAME"
    run = selected.with_profile("hostile.yaml", gpus=1, cpus=2, scratch=scratch, environment=environment)
    run.submit()

    # Preemption in the first seconds, before Python handles signals.
    cluster.wait(started.exists, "the start of Python")
    running = [job.id for job in cluster.queue().values() if job.state == "RUNNING"]
    for job in running:
        cluster.run("scancel", "--signal=USR2", job)

    # A node's daemon is killed, and the controller restarted. A colleague asks meanwhile, and afterwards.
    cluster.stop_daemon("n3", signal.SIGKILL)
    cluster.stop_daemon("slurmctld", signal.SIGTERM)
    assert "Slurm does not answer" in run.call("status", run.root, code=7)
    cluster.up()
    assert "recover" in run.call("status", run.root, code=3)

    # Memory runs out in one task, and an administrator requeues another.
    cluster.wait(lambda: any((run.root / "recover").glob("*/checkpoint.pt")), "a checkpoint")
    at_work = [job.id for job in cluster.queue().values() if job.state == "RUNNING" and "recover" in job.name]
    for number, job in enumerate(at_work[:2]):
        if number == 0:
            cluster.send(job, signal.SIGKILL)
        else:
            cluster.run("scontrol", "requeue", job, check=False)  # refused where it has just ended

    cluster.wait_empty()
    rows = run.tasks(code=0)
    assert {row["state"] for row in rows.values()} == {"done"}
    assert sum(row["restarts"] for row in rows.values()) >= 2
    assert "had no working GPU on n2" in " ".join(reason for row in rows.values() for reason in row["restarted"])
    assert not {row["node"] for row in rows.values() if row["job"]} & {"n2"}
    assert run.distilled() == expected
