"""Times of one variant: first iteration, check, warm-up, and then blocks of iterations, each between two waits."""

import time
from dataclasses import dataclass
from statistics import fmean, median

import torch

from delt_hpc.bench import synthesis_checks as checks
from delt_hpc.bench.synthesis_cases import Case
from delt_hpc.bench.synthesis_checks import Errors
from delt_hpc.bench.synthesis_runs import Outcome, Run
from delt_hpc.bench.synthesis_variants import Variant
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.recovery.cuda_graph import WARM_UP as GRAPH_WARM_UP

BLOCK_SECONDS = 0.5
WARM_UP = {"cuda": GRAPH_WARM_UP + 2, "cpu": 1}  # iterations; on a GPU the last ones replay the recorded graph


@dataclass(frozen=True)
class Pass:
    """Times of one pass.

    Attributes:
        images: it moves.
        blocks: milliseconds of an iteration, of each block.
        block: iterations of a block.
        host_ms: the host's time for launching an iteration; None where it waits for each.
        first_s, warmup_s: the first iteration, and those until times are taken.
    """

    images: int
    blocks: tuple[float, ...]
    block: int
    host_ms: float | None
    first_s: float
    warmup_s: float

    @property
    def ms(self) -> float:
        return median(self.blocks)


@dataclass(frozen=True)
class Times:
    """Times of a variant: all passes that a recipe consists of, each for as many iterations.

    Attributes:
        errors: largest ones of what was checked.
        start_s: making the engine, and the first iterations of all passes with all compilation.
        peak_bytes: most GPU memory held; None on a CPU.
    """

    passes: tuple[Pass, ...]
    errors: Errors
    start_s: float
    peak_bytes: int | None

    @property
    def images(self) -> float:
        return fmean(each.images for each in self.passes)

    @property
    def ms(self) -> float:
        return fmean(each.ms for each in self.passes)

    @property
    def spread(self) -> float:
        """From the fastest to the slowest blocks, as a share of the median."""
        return fmean(max(each.blocks) - min(each.blocks) for each in self.passes) / self.ms

    @property
    def host_ms(self) -> float | None:
        launched = [each.host_ms for each in self.passes if each.host_ms is not None]
        return fmean(launched) if len(launched) == len(self.passes) else None

    @property
    def warmup_s(self) -> float:
        return sum(each.warmup_s for each in self.passes)

    @property
    def images_per_s(self) -> float:
        """Image-iterations."""
        return 1000 * self.images / self.ms


def measure(
    variant: Variant,
    case: Case,
    precision: RecoverPrecision,
    due: dict[int, Outcome],
    repeats: int,
    device: torch.device,
) -> Times:
    """All passes of a variant.

    Raises:
        InexactError: a first iteration is wrong (`checks.check`).
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    run = variant.start(case, precision, device)
    _wait(device)
    start_s = time.perf_counter() - began
    passes, errors = [], []
    for rounds in variant.passes(case.recipe.rounds):
        images = run.enter(rounds)
        first_s, _ = _timed(run, 1, device)
        errors.append(checks.check(run, rounds, due, precision))
        passes.append(_repeat(run, images, first_s, case.recipe.round_length, repeats, device))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Times(tuple(passes), checks.worst(errors), start_s + sum(each.first_s for each in passes), peak)


def _repeat(run: Run, images: int, first_s: float, longest: int, repeats: int, device: torch.device) -> Pass:
    warmup = [_timed(run, 1, device)[0] for _ in range(WARM_UP[device.type])]
    block = max(1, min(longest, round(BLOCK_SECONDS / warmup[-1])))
    blocks = [_timed(run, block, device) for _ in range(repeats)]
    launched = [1000 * host for _, host in blocks if host is not None]
    ms = tuple(1000 * seconds / block for seconds, _ in blocks)
    return Pass(images, ms, block, median(launched) if launched else None, first_s, sum(warmup))


def _timed(run: Run, iterations: int, device: torch.device) -> tuple[float, float | None]:
    """Seconds of so many iterations, and of the host's for launching one."""
    _wait(device)
    began = time.perf_counter()
    launching = run.iterate(iterations)
    _wait(device)
    return time.perf_counter() - began, launching


def _wait(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
