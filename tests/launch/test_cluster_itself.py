"""The test cluster itself: what the other tests on it rely on."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.slurm_cluster import Cluster


SCRIPT = Path(__file__).parents[2] / "slurm" / "testcluster"


def test_a_second_up_changes_nothing(cluster: "Cluster") -> None:
    pids = {path.name: path.read_text() for path in cluster.folder.glob("*.pid")}
    done = cluster.run(SCRIPT, "up", cluster.folder)
    assert done.stdout == f"export SLURM_CONF={cluster.folder}/slurm.conf\n"
    assert {path.name: path.read_text() for path in cluster.folder.glob("*.pid")} == pids
    assert len(pids) == 6
    assert "n4 idle 2 cpus 2000 MB gpu:2" in cluster.run(SCRIPT, "status", cluster.folder).stdout


def test_tasks_of_an_array_get_a_gpu_each(cluster: "Cluster", tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/sh\n"
        "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES\n"
        f"until [ $(ls {tmp_path}/*.log | wc -l) -eq 8 ]; do sleep 0.1; done\n"  # all run at the same time
    )
    for _ in range(4):
        cluster.submit("--array=0-1", "--gres=gpu:1", f"--output={tmp_path}/%A_%a.log", script)
    cluster.wait_empty()
    given = {log.read_text().strip() for log in tmp_path.glob("*.log")}
    assert given == {f"n{node} {gpu}" for node in range(1, 5) for gpu in (0, 1)}


def test_no_array_is_larger_than_three(cluster: "Cluster") -> None:
    refused = cluster.run("sbatch", "--array=0-3", "--output=/dev/null", "--wrap=true", check=False)
    assert "Invalid job array specification" in refused.stderr


def test_dead_daemons_are_restarted(cluster: "Cluster") -> None:
    cluster.stop_daemon("n2", signal.SIGKILL)
    cluster.stop_daemon("slurmctld", signal.SIGTERM)
    cluster.up()
    assert cluster.run("scontrol", "ping").stdout.strip().endswith("UP")
    assert "Node=n2" in cluster.run("srun", "-w", "n2", "sh", "-c", "echo Node=$SLURMD_NODENAME").stdout


def test_jobs_are_remembered_by_accounting(accounted_cluster: "Cluster") -> None:
    job = accounted_cluster.submit("--output=/dev/null", "--wrap=exit 3")
    sacct = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode")
    accounted_cluster.wait(lambda: "FAILED|3:0" in accounted_cluster.run(*sacct).stdout, "failure in sacct")


@pytest.mark.parametrize("arguments", [[], ["left"], ["up", "--fast"], ["down", "a", "b"], ["down", "--accounting"]])
def test_wrong_arguments_print_the_usage(arguments: list[str]) -> None:
    done = subprocess.run([SCRIPT, *arguments], text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "slurm/testcluster up [--accounting] [DIR]" in done.stderr


def test_where_slurm_is_missing_the_packages_are_named(tmp_path: Path) -> None:
    text = SCRIPT.read_text().replace("PATH=$PATH:/usr/sbin:/sbin\n", "")
    copy = tmp_path / "testcluster"
    copy.write_text(text)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "id", "realpath"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        ["bash", copy, "up", tmp_path / "cluster"],
        env=os.environ | {"PATH": str(tools)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 4
    assert "apt-get install --no-install-recommends munge slurmctld slurmd slurm-client\n" in done.stderr


def test_status_and_down_of_no_cluster(tmp_path: Path) -> None:
    assert subprocess.run([SCRIPT, "status", tmp_path], capture_output=True, check=False).returncode == 3
    assert subprocess.run([SCRIPT, "down", tmp_path], capture_output=True, check=False).returncode == 0
