"""Attacks on runs: kills, damage, power loss, full and read-only disks, two processes at once. `make faults` starts it.

After each attack the same command is given again, without disturbance, and its results must be those of an undisturbed
run, byte by byte. FAULTS_SECONDS limits the time (default: 20 minutes), FAULTS_SEED repeats a suite. Power loss and
full or read-only disks need root; where disks cannot be mounted, these attacks are skipped.
"""

import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from runs import CALLS, Measured, Runs, Work

import attacks
import disks
from attacks import WRONG, Attack

SECONDS = float(os.environ.get("FAULTS_SECONDS", "1200"))
SEED = int(os.environ.get("FAULTS_SEED", str(int(time.time()))))
RESULTS = ("teacher/weights.safetensors", "rank", "ranking.csv", "selected", "recover", "distilled")
DAMAGE = (attacks.delete, attacks.cut_to_nothing, attacks.halve, attacks.cut_a_line, attacks.flip_a_bit)


@dataclass
class Row:
    """An attack and what must hold after it; `failed` says what was wrong."""

    attack: Attack
    measured: Measured
    tries: int = 0
    failed: list[str] = field(default_factory=list)


def rows(runs: Runs) -> dict[str, Row]:
    """All attacks that are possible here, by name."""
    # The report takes more time than all other stages of so small a run together, so it is attacked by itself.
    work = Work("run", ("squeeze", "rank", "select", "recover", "aggregate", "evaluate"), None, RESULTS)
    measured = Measured(runs, work)
    finished, half, reported = (
        shutil.copytree(runs.run, runs.folder / "finished"),
        runs.folder / "half",
        runs.folder / "reported",
    )
    attacks.stop_in_recovery(runs, measured, half)
    report = Measured(runs, Work("report", ("report",), finished, (*RESULTS, "report")))
    shutil.copytree(runs.run, reported)

    made: dict[str, Row] = {}
    for part in (measured, report):
        name, calls = part.work.name, f"one of {part.calls} calls ({', '.join(CALLS)})"
        made[f"{name}: SIGKILL before {calls}"] = Row(attacks.kills_at_calls(runs, part), part)
        made[f"{name}: SIGKILL at a random moment"] = Row(attacks.kills_at_moments(runs, part), part)
        made[f"{name}: files cannot grow"] = Row(attacks.no_growth(runs, part), part)
    made["run: two processes at once"] = Row(attacks.two_processes(runs, measured, half), measured)
    if disks.possible(runs.folder):
        made[f"run: power loss before one of {measured.calls} calls"] = Row(
            attacks.power_losses(runs, measured), measured
        )
        made["run: disk too small"] = Row(attacks.full_disks(runs, measured), measured)
        made["run: disk becomes read-only"] = Row(attacks.read_only_disks(runs, measured), measured)
    for change in DAMAGE:
        name = change.__name__.replace("_", " ")
        made[f"finished run: {name}"] = Row(attacks.damage(runs, change, finished), measured)
        made[f"interrupted run: {name}"] = Row(attacks.damage(runs, change, half), measured)
        made[f"report: {name}"] = Row(attacks.damage(runs, change, reported, "report"), report)
    return made


def run_all(runs: Runs, made: dict[str, Row], until: float) -> None:
    """One try of each attack after the other, until the time is over."""
    waiting = dict(made)
    while waiting and time.monotonic() < until:
        for name, row in list(waiting.items()):
            case = next(row.attack, None)
            if case is None:
                del waiting[name]
                continue
            row.tries += 1
            fault = case if case.startswith(WRONG) else runs.fault(row.measured)
            if fault:
                row.failed.append(f"{case}: {fault}")
                print(f"FAILED {name}: {case}: {fault}", flush=True)
            if time.monotonic() >= until:
                break


def main() -> int:
    torch.set_num_threads(1)
    random.seed(SEED)
    began = time.monotonic()
    print(f"seed {SEED}, at most {SECONDS:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        runs = Runs(Path(folder), SEED)
        made = rows(runs)
        run_all(runs, made, began + SECONDS)
    print("\n| attack | tries | survived | failed |\n| --- | ---: | ---: | ---: |")
    for name, row in made.items():
        print(f"| {name} | {row.tries} | {row.tries - len(row.failed)} | {len(row.failed)} |")
    if not any("disk" in name for name in made):
        print("\nskipped: power loss, full and read-only disks (they need root and the right to mount)")
    print(f"\n{time.monotonic() - began:.0f} s, seed {SEED}")
    return 1 if any(row.failed for row in made.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
