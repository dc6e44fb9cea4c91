"""Attacks on a run: kills, damage, a full disk, two processes at once. Prints a table; `make faults` starts it.

After each attack the same command is given again, without disturbance, and its results must be those of an undisturbed
run, byte by byte. FAULTS_SECONDS limits the time (default: 20 minutes), FAULTS_SEED repeats a suite.
"""

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from delt_hpc.config.load import parse_config
from delt_hpc.config.schema import Config, Stage
from delt_hpc.errors import UserError
from delt_hpc.pipeline import open_run, run_stages
from delt_hpc.run.progress import Reporter

SECONDS = float(os.environ.get("FAULTS_SECONDS", "1200"))
SEED = int(os.environ.get("FAULTS_SEED", str(int(time.time()))))
# The calls at which a process is killed: each may be the last before the power goes.
CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "open")
# Without `report`, which takes most of the time of so small a run.
STAGES_ATTACKED: tuple[Stage, ...] = ("squeeze", "rank", "select", "recover", "aggregate", "evaluate")
RESULTS = ("teacher/weights.safetensors", "rank", "ranking.csv", "selected", "recover", "distilled")
NOT_DAMAGED = ("timing", "timing.csv", "locks")  # timing records have no checksums
OK, USER_ERROR, CRASHED = 0, 2, 3


@dataclass
class Row:
    """The tries of an attack; `failed` says what was wrong."""

    tries: int = 0
    failed: list[str] = field(default_factory=list)


def make_images(root: Path) -> None:
    numbers = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for folder in ("00010", "10", "two words"):
            (root / split / folder).mkdir(parents=True)
            for number in range(count):
                pixels = numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / folder / f"{number}.png")


def configuration(root: Path) -> Config:
    tree: dict[str, Any] = {
        "data": {"name": "toy", "root": str(root), "size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "squeeze": {"epochs": 2, "warmup_epochs": 0, "batch_size": 16, "lr": 0.02},
        # As many as a class has, so that a class that is scored alone is scored in the same batches.
        "rank": {"batch_size": 5},
        "select": {"ipc": 2},
        "recover": {"iterations": 8, "round_iterations": 4, "batch_size": 2, "checkpoint_seconds": 0.0},
        "evaluate": {"epochs": 2, "seeds": [1], "batch_size": 6, "arms": ["distilled-soft"]},
        "machine": {"device": "cpu", "workers": 0, "loader": "torchvision"},
    }
    return parse_config(tree, "faults")


def fork(work: Callable[[], None], log: Path) -> int:
    """Start `work` in a child process; its output goes to `log`."""
    child = os.fork()
    if child:
        return child
    code = CRASHED
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        try:
            work()
            code = OK
        except UserError as error:
            code = USER_ERROR
            os.write(2, f"error: {error}\n".encode())
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        # Whatever happens, also where the log cannot grow: the child must not clean up after its parent.
        os._exit(code)


def wait(child: int) -> int:
    """The child's exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Suite:
    def __init__(self, folder: Path) -> None:
        self.folder, self.random = folder, random.Random(SEED)
        make_images(folder / "images")
        self.config = configuration(folder / "images")
        self.log, self.run = folder / "log", folder / "run"
        self.finished, self.half = folder / "finished", folder / "half"
        assert self.start(self.finished) == OK, self.log.read_text()
        self.expected = self.results(self.finished)
        self.calls = self._count_calls()
        self._stop_in_recovery()

    def work(self, root: Path) -> None:
        run_stages(open_run(self.config, root, Reporter()), STAGES_ATTACKED)

    def start(self, root: Path, before: Callable[[], None] = lambda: None) -> int:
        def work() -> None:
            before()
            self.work(root)

        return wait(fork(work, self.log))

    def results(self, root: Path) -> dict[str, bytes]:
        """The content of all results; without stamps, markers and curves, which hold times and the kind of machine."""
        files = [
            path
            for name in RESULTS
            for path in ([root / name] if (root / name).is_file() else (root / name).rglob("*"))
        ]
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(files)
            if path.is_file() and path.name not in ("done.json", "made_by.json")
        }

    def fault(self) -> str:
        """What is wrong with the run once the command was given again; empty if nothing is."""
        for _ in range(3):
            code = self.start(self.run)
            if code == OK:
                break
            said = self.log.read_text()
            if code != USER_ERROR or "to do:" not in said:
                return f"exit {code}: {said[-300:]}"
            self._follow(said)
        else:
            return f"the remedy does not work: {self.log.read_text()[-300:]}"
        found = self.results(self.run)
        different = sorted(
            name for name in found.keys() | self.expected.keys() if found.get(name) != self.expected.get(name)
        )
        return f"other results: {different[:4]}" if different else ""

    def _follow(self, said: str) -> None:
        """Delete what the remedy of an error says is to be deleted."""
        where = Path(said[said.rindex("error: ") :].removeprefix("error: ").partition(": ")[0])
        assert where.is_relative_to(self.run), said
        if "delete dataset.json" in said:
            (self.run / "dataset.json").unlink()
        elif "delete it;" in said:
            where.unlink()
        elif "delete this folder" in said:
            shutil.rmtree(where)

    def fresh(self, source: Path | None = None) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        if source:
            shutil.copytree(source, self.run)

    # --- attacks: each call of an iterator is one try and yields what was attacked

    def kills_at_calls(self) -> Iterator[str]:
        """Killed before the n-th call that changes the disk, for every n in random order."""
        order = list(range(1, self.calls + 1))
        self.random.shuffle(order)
        for number in order:
            self.fresh()
            code = self.start(self.run, lambda number=number: count_calls(number))  # type: ignore[misc]
            assert code in (-signal.SIGKILL, OK), self.log.read_text()
            yield f"call {number}"

    def kills_at_moments(self) -> Iterator[str]:
        while True:
            self.fresh()
            child = fork(lambda: self.work(self.run), self.log)
            delay = self.random.uniform(0.0, self.seconds_of_a_run)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            wait(child)
            yield f"after {delay:.3f} s"

    def full_disk(self) -> Iterator[str]:
        """No file can grow beyond a limit."""
        while True:
            limit = self.random.choice((0, 10, 200, 1000, 3000, 10_000, 50_000))

            def before(limit: int = limit) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            self.fresh()
            self.start(self.run, before)
            yield f"files of at most {limit} bytes"

    def two_processes(self) -> Iterator[str]:
        while True:
            self.fresh(self.half if self.random.random() < 0.5 else None)
            if not self.run.exists():
                self.start_set_up()
            children = [fork(lambda: self.work(self.run), self.folder / f"log{i}") for i in range(2)]
            codes = [wait(child) for child in children]
            said = " ".join((self.folder / f"log{i}").read_text()[-300:] for i in range(2) if codes[i])
            yield f"exit codes {codes} {said}" if any(codes) else ""

    def damage(self, change: Callable[[bytes], bytes | None], source: Path) -> Iterator[str]:
        """A file of the run folder is changed, or deleted where `change` gives nothing."""
        while True:
            found = (path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file())
            files = [path for path in found if path.parts[0] not in NOT_DAMAGED]
            self.random.shuffle(files)
            for path in files:
                self.fresh(source)
                changed = change((source / path).read_bytes())
                if changed is None:
                    (self.run / path).unlink()
                else:
                    (self.run / path).write_bytes(changed)
                yield path.as_posix()

    def start_set_up(self) -> None:
        assert wait(fork(lambda: void(open_run(self.config, self.run, Reporter(quiet=True))), self.log)) == OK

    def _count_calls(self) -> int:
        began, counted = time.monotonic(), self.folder / "calls"
        code = self.start(self.run, lambda: count_calls(0, counted))
        assert code == OK, self.log.read_text()
        self.seconds_of_a_run = time.monotonic() - began
        return len(counted.read_bytes())

    def _stop_in_recovery(self) -> None:
        """A run that was killed between two checkpoints of recovery."""

        def before() -> None:
            replace, seen = os.replace, [0]

            def counting(source: Any, target: Any, **given: Any) -> None:
                replace(source, target, **given)
                seen[0] += str(target).endswith("checkpoint.pt")
                if seen[0] == 3:
                    os.kill(os.getpid(), signal.SIGKILL)

            os.replace = counting

        assert self.start(self.half, before) == -signal.SIGKILL
        assert list(self.half.glob("recover/*/checkpoint.pt"))


def void(_: object) -> None:
    """Drop a result."""


def count_calls(kill_at: int, counted: Path | None = None) -> None:
    """Count the calls that change the disk, and end the process before one of them."""
    seen = 0
    file = counted.open("wb", buffering=0) if counted else None

    def patched(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if file:
                file.write(b".")
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return call

    for name in CALLS:
        setattr(os, name, patched(name))


def delete(content: bytes) -> None:
    """The file is removed."""


def cut_to_nothing(content: bytes) -> bytes:
    return b""


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_a_line(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:-1])


def flip_a_bit(content: bytes) -> bytes:
    place, changed = random.randrange(max(1, len(content))), bytearray(content)
    if changed:
        changed[place] ^= 1 << random.randrange(8)
    return bytes(changed)


def main() -> int:
    torch.set_num_threads(1)
    random.seed(SEED)
    began = time.monotonic()
    print(f"seed {SEED}, at most {SECONDS:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        suite = Suite(Path(folder))
        attacks: dict[str, Iterator[str]] = {
            f"SIGKILL before one of {suite.calls} calls ({', '.join(CALLS)})": suite.kills_at_calls(),
            "SIGKILL at a random moment": suite.kills_at_moments(),
            "no space (files cannot grow)": suite.full_disk(),
            "two processes at once": suite.two_processes(),
        }
        for change in (delete, cut_to_nothing, halve, cut_a_line, flip_a_bit):
            for state, source in (("finished", suite.finished), ("interrupted", suite.half)):
                attacks[f"{change.__name__.replace('_', ' ')}, {state} run"] = suite.damage(change, source)
        rows = {name: Row() for name in attacks}
        waiting = dict(attacks)
        while waiting and time.monotonic() - began < SECONDS:
            for name, attack in list(waiting.items()):
                case = next(attack, None)
                if case is None:
                    del waiting[name]
                    continue
                rows[name].tries += 1
                fault = case if case.startswith("exit codes") else suite.fault()
                if fault:
                    rows[name].failed.append(f"{case}: {fault}")
                    print(f"FAILED {name}: {case}: {fault}", flush=True)
                if time.monotonic() - began >= SECONDS:
                    break
        seconds = time.monotonic() - began
    print("\n| attack | tries | survived | failed |\n| --- | ---: | ---: | ---: |")
    for name, row in rows.items():
        print(f"| {name} | {row.tries} | {row.tries - len(row.failed)} | {len(row.failed)} |")
    print("\nskipped: power loss on a loop device, read-only disks")
    print(f"\n{seconds:.0f} s, seed {SEED}")
    return 1 if any(row.failed for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
