"""Array tasks inside the image, on a real Slurm cluster: docker/check slurm, which names the image in DELT_SIF."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.cluster_runs import LaunchedRun


ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("DELT_SIF")


@pytest.fixture
def contained(selected: "LaunchedRun") -> "LaunchedRun":
    """A run of which recovery and what follows is missing, its tasks to work inside the image."""
    if shutil.which("apptainer") is None:
        selected.cluster.env["PATH"] = f"{ROOT / 'docker'}{os.pathsep}{os.environ['PATH']}"
    return selected.with_profile("contained.yaml", apptainer={"image": IMAGE, "options": []})


def pending(process: int, number: signal.Signals) -> bool:
    """Has the process been sent the signal, and not taken it yet?"""
    status = Path("/proc", str(process), "status").read_text()
    (mask,) = re.findall(r"^ShdPnd:\t(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not IMAGE, reason="DELT_SIF names no image; docker/check slurm does")
def test_a_preempted_task_resumes_inside_the_image(contained: "LaunchedRun", expected: dict[str, bytes]) -> None:
    """It is told by Slurm, saves, asks the script outside for its requeueing, and ends with the same bytes."""
    run, cluster = contained, contained.cluster
    run.submit("--stages", "recover,aggregate")
    job = run.tasks(code=3)["recover 00001-00001"]["job"]
    run.hold({1: job})
    node = cluster.queue()[job].node
    cluster.submit("-p", "high", "--exclusive", "-w", node, "--output=/dev/null", "--wrap=true")
    (process,) = cluster.processes(job)
    cluster.wait(lambda: pending(process, signal.SIGUSR2), "the signal to stop")
    cluster.send(job, signal.SIGCONT)
    cluster.wait_empty()
    rows = run.tasks(code=5)
    assert {row["state"] for name, row in rows.items() if name.startswith(("recover", "aggregate"))} == {"done"}
    assert rows["recover 00001-00001"]["restarts"] == 1
    log = run.root / "logs" / f"recover-00001-00001.{job}.r0.log"
    assert "stopped on request; started again, the task resumes" in log.read_text()
    assert run.distilled() == expected
