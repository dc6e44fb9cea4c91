"""A small run on the test cluster: its configuration, what it looks like undisturbed, and the launcher's commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.slurm_cluster import HANGS, SCRIPT, Cluster

CLASSES = ("00010", "10", "two words", "été")

SETTINGS: dict[str, Any] = {
    "name": "toy",
    "data": {"name": "toy", "size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "squeeze": {"epochs": 2, "warmup_epochs": 0, "batch_size": 16, "lr": 0.02},
    "select": {"ipc": 3},
    # A class a batch; long enough to be caught at work, with a checkpoint early.
    "recover": {"iterations": 400, "round_iterations": 100, "batch_size": 3, "image_format": "png"},
    "evaluate": {"epochs": 2, "seeds": [1], "arms": ["distilled-soft"], "batch_size": 6, "validate_every": 1},
    "machine": {"device": "cpu", "loader": "torchvision", "workers": 0},
}
SETTINGS["recover"]["checkpoint_seconds"] = 0.2


@dataclass(frozen=True)
class LaunchedRun:
    """A run folder and the commands of the launcher on it."""

    cluster: Cluster
    config: Path
    root: Path
    profile: Path

    def call(self, *arguments: str | Path, code: int = 0) -> str:
        """A command of the launcher, which must end with this exit code; all that it wrote."""
        done = self.cluster.run(sys.executable, "-m", "delt_hpc.cli", *arguments, check=False)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *options: str, code: int = 0) -> str:
        return self.call("submit", self.config, "--cluster", self.profile, "--run", self.root, *options, code=code)

    @contextmanager
    def following(self, *arguments: str) -> Iterator[list[str]]:
        """`logs -f` meanwhile; the list has what it wrote when it has ended by itself, which it must."""
        written: list[str] = []
        command = [sys.executable, "-m", "delt_hpc.cli", "logs", self.root, *arguments, "-f"]
        process = subprocess.Popen(command, env=self.cluster.env, text=True, stdout=subprocess.PIPE)
        try:
            yield written
            output, _ = process.communicate(timeout=HANGS)
            assert process.returncode == 0
            written += output.splitlines()
        finally:
            process.kill()
            process.wait()

    def with_profile(self, file: str, **changes: Any) -> "LaunchedRun":
        """The same run, further submissions with values of the profile changed."""
        profile = self.root.with_name(file)
        profile.write_text(yaml.safe_dump(yaml.safe_load(self.profile.read_text()) | changes))
        return replace(self, profile=profile)

    def tasks(self, code: int) -> dict[str, dict[str, Any]]:
        """Rows of `status --json` by stage and unit; the status must end with this exit code."""
        content = json.loads(self.call("status", self.root, "--json", code=code))
        return {f"{row['stage']} {row['unit']}": row for row in content["tasks"]}

    def states(self, code: int) -> dict[str, str]:
        return {name: row["state"] for name, row in self.tasks(code).items()}

    def distilled(self) -> dict[str, bytes]:
        """Every file of the distilled data set."""
        return files(self.root / "distilled")

    def hold(self, jobs: dict[int, str]) -> None:
        """Stop the recovery tasks {class: job} in the middle of their work, each after its first checkpoint."""
        left, end = dict(jobs), time.monotonic() + HANGS
        while left:
            assert time.monotonic() < end, f"never at work: {left}"
            for index, job in list(left.items()):
                if self.checkpoint(index).exists():
                    self.cluster.send(job, signal.SIGSTOP)
                    del left[index]
            time.sleep(0.02)
        assert all(self.checkpoint(index).exists() for index in jobs), "too late: finished before it was held"

    def checkpoint(self, index: int) -> Path:
        return self.root / "recover" / f"{index:05d}-{index:05d}" / "checkpoint.pt"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def toy_config(tmp_path_factory: pytest.TempPathFactory, image_folder: Callable[..., Path]) -> Path:
    """Four classes of tiny images, and the configuration of a run over them."""
    root = tmp_path_factory.mktemp("toy")
    image_folder(root / "train", dict.fromkeys(CLASSES, 12), size=8)
    image_folder(root / "val", dict.fromkeys(CLASSES, 4), size=8)
    config = root / "toy.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, "data": {**SETTINGS["data"], "root": str(root)}}))
    return config


@pytest.fixture(scope="session")
def toy_profile(toy_config: Path) -> Path:
    """The test cluster's own profile, with all classes ranked by one task: an array of one."""
    tree = yaml.safe_load((SCRIPT.parent / "testcluster.yaml").read_text())
    tree["stages"] = {"rank": {"classes_per_task": len(CLASSES)}}
    profile = toy_config.with_name("profile.yaml")
    profile.write_text(yaml.safe_dump(tree))
    return profile


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, toy_config: Path) -> Path:
    """The run folder after `delt-hpc run`, in one process, without a cluster. Not to be changed."""
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run(
        [sys.executable, "-m", "delt_hpc.cli", "run", toy_config, "--run", root, "--quiet"],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as the profile says: sums depend on how they are cut
    )
    return root


@pytest.fixture(scope="session")
def expected(undisturbed: Path) -> dict[str, bytes]:
    """The files of the undisturbed run's distilled data set."""
    return files(undisturbed / "distilled")


RunOn = Callable[[Cluster], LaunchedRun]


@pytest.fixture
def run_on(tmp_path: Path, toy_config: Path, toy_profile: Path) -> RunOn:
    """A run on the given cluster, of which nothing is there."""
    return lambda cluster: LaunchedRun(cluster, toy_config, tmp_path / "run", toy_profile)


@pytest.fixture
def selected(cluster: Cluster, run_on: RunOn, undisturbed: Path) -> LaunchedRun:
    """A run of which recovery, aggregation and report are missing."""
    run = run_on(cluster)
    shutil.copytree(undisturbed, run.root)
    for name in ("recover", "distilled", "report"):
        shutil.rmtree(run.root / name)
    return run
