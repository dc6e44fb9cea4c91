"""A real Slurm cluster for tests: `slurm/testcluster`, up for the session, in a folder of its own.

The fixture is `cluster`, or `accounted_cluster` for tests that need sacct. Without Slurm their tests are skipped; with
REQUIRE_SLURM=1 they fail. All of them run in the same process of pytest-xdist, so that one cluster serves them all.

Time limits here only end a test that hangs. They are long, because the machine may be busy with other work.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from delt_hpc.launch import queue

SCRIPT = Path(__file__).parents[2] / "slurm" / "testcluster"
NOT_INSTALLED = 4
HANGS = 1800.0  # seconds


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on a cluster are one group of pytest-xdist (`--dist loadgroup`)."""
    for item in items:
        if {"cluster", "accounted_cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("slurm"))


@dataclass(frozen=True)
class Job:
    """One row of the queue."""

    id: str  # 17, or 17_3 for a task of an array
    state: str
    node: str
    reason: str
    name: str


class Cluster:
    """The cluster, and what tests do to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.env = clean | {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """A command that sees the cluster; a failure shows what it wrote."""
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, check=False, timeout=HANGS)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def submit(self, *arguments: str | Path) -> str:
        """sbatch; the job's id."""
        return self.run("sbatch", "--parsable", *arguments).stdout.strip()

    def queue(self) -> dict[str, Job]:
        """Every job that Slurm remembers, finished ones too, by id."""
        rows = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N|%r|%j").stdout.splitlines()
        return {job.id: job for job in (Job(*row.split("|", 4)) for row in rows)}

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ...; empty for a job that Slurm has forgotten."""
        found = self.queue().get(job)
        return found.state if found else ""

    def wait(self, condition: Callable[[], object], what: str, seconds: float = HANGS) -> None:
        """Until the condition holds; the failure shows the queue."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                queue = self.run("squeue", "-r", "-t", "all", check=False)
                raise AssertionError(f"not within {seconds} s: {what}\n{queue.stdout}{queue.stderr}")
            time.sleep(0.2)

    def wait_state(self, job: str, *states: str) -> None:
        self.wait(lambda: self.state(job) in states, f"{job} in {states}")

    def wait_empty(self) -> None:
        """Until nothing waits or runs."""
        self.wait(lambda: not self.run("squeue", "-h").stdout, "no job waits or runs")

    def processes(self, job: str = "") -> list[int]:
        """Ids of a job's Python processes; without a job, of all that any job has started."""
        base, _, task = job.partition("_")
        wanted = {f"SLURM_CONF={self.env['SLURM_CONF']}"}
        if job:
            wanted |= (
                {f"SLURM_ARRAY_JOB_ID={base}", f"SLURM_ARRAY_TASK_ID={task}"} if task else {f"SLURM_JOB_ID={base}"}
            )
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                program = (process / "cmdline").read_bytes().split(b"\0")[0]
                variables = set((process / "environ").read_text(errors="replace").split("\0"))
            except OSError:  # it ended meanwhile
                continue
            of_a_job = any(variable.startswith("SLURM_JOB_ID=") for variable in variables)
            if wanted <= variables and of_a_job and (not job or b"python" in program):
                found.append(int(process.name))
        return found

    def send(self, job: str, number: signal.Signals) -> None:
        """Send it to the job's Python processes, past Slurm."""
        for process in self.processes(job):
            os.kill(process, number)

    def stop_daemon(self, name: str, number: signal.Signals) -> None:
        """Signal slurmctld, or a node's slurmd by the node's name, and see it end; `up` starts it again."""
        file = self.folder / f"{name}.pid"
        status = Path("/proc", file.read_text().strip(), "stat")
        os.kill(int(status.parent.name), number)
        self.wait(lambda: not status.exists() or " Z " in status.read_text(), f"the end of {name}")

    def minutes_run(self, job: str) -> int:
        """Whole minutes since the job's last start."""
        entry = queue.parse_squeue(self.run("squeue", "-h", "-r", "-j", job, "-o", "%i|%T|%N|%M|%r").stdout)[job]
        assert entry.seconds is not None
        return entry.seconds // 60

    def up(self) -> None:
        """Start what is not running."""
        self.run(SCRIPT, "up", self.folder)

    @contextmanager
    def setting(self, **values: int) -> Iterator[None]:
        """Values of slurm.conf for a while; slurmctld learns a MaxArraySize only before the first array."""
        file = self.folder / "slurm.conf"
        before = file.read_text()
        text = before
        for key, value in values.items():
            text = re.sub(rf"^{key}=.*\n", "", text, flags=re.MULTILINE) + f"{key}={value}\n"
        try:
            self._configure(text)
            yield
        finally:
            self._configure(before)

    def _configure(self, text: str) -> None:
        (self.folder / "slurm.conf").write_text(text)
        self.run("scontrol", "reconfigure")


def _started(*options: str) -> Iterator[Cluster]:
    # A short path, for sockets lie in it.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    started = subprocess.run([SCRIPT, "up", *options, folder], text=True, capture_output=True, check=False)
    try:
        if started.returncode == NOT_INSTALLED and not os.environ.get("REQUIRE_SLURM"):
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        yield Cluster(folder)
    finally:
        subprocess.run([SCRIPT, "down", folder], capture_output=True, check=True)
        for process in Cluster(folder).processes():  # of a test that failed while it held them
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes with two fake GPUs each, no accounting, arrays of at most three tasks."""
    for found in _started():
        with found.setting(MaxArraySize=3):
            yield found


@pytest.fixture(scope="session")
def accounted_cluster() -> Iterator[Cluster]:
    """The same with slurmdbd and MariaDB."""
    yield from _started("--accounting")
