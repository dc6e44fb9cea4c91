"""Times of one variant: first iteration, check, warm-up, then several blocks of iterations."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import torch
from torch.profiler import ProfilerActivity
from torch.utils.benchmark import timer  # waits for the device, then reads the clock

from delt_hpc.bench.synthesis import check
from delt_hpc.bench.synthesis.cases import Case
from delt_hpc.bench.synthesis.check import Errors
from delt_hpc.bench.synthesis.engines import Held, Outcome
from delt_hpc.bench.synthesis.variants import Variant
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.recovery.cuda_graph import WARM_UP as GRAPH_WARM_UP
from delt_hpc.run.folder import write_text

BLOCK_SECONDS = 0.5
PROFILED_ITERATIONS = 3
WARM_UP = {"cuda": GRAPH_WARM_UP + 2, "cpu": 1}  # iterations; on a GPU the last ones replay the captured graph


@dataclass(frozen=True)
class Pass:
    """Times of one pass.

    Attributes:
        images: in the pass.
        blocks: milliseconds of an iteration, block by block.
    """

    images: int
    blocks: tuple[float, ...]

    @property
    def ms(self) -> float:
        return median(self.blocks)


@dataclass(frozen=True)
class Times:
    """Times of a variant: all passes of a recipe, each of which has the same number of iterations.

    Attributes:
        errors: the largest ones.
        start_s: construction of the engine and first iterations of all passes, including compilation.
        peak_bytes: of GPU memory; None on a CPU.
    """

    passes: tuple[Pass, ...]
    errors: Errors
    start_s: float
    peak_bytes: int | None

    @property
    def images(self) -> float:
        return fmean(p.images for p in self.passes)

    @property
    def ms(self) -> float:
        return fmean(p.ms for p in self.passes)

    @property
    def spread(self) -> float:
        """Slowest minus fastest block, as a share of the median."""
        return fmean(max(p.blocks) - min(p.blocks) for p in self.passes) / self.ms

    @property
    def image_iterations_per_s(self) -> float:
        return 1000 * self.images / self.ms


def measure(
    variant: Variant,
    case: Case,
    precision: RecoverPrecision,
    exact: dict[int, Outcome],
    repeats: int,
    device: torch.device,
    profile: Path | None = None,
) -> Times:
    """Times of all passes of a variant.

    Args:
        profile: file for a table of the kernels of an iteration of the last pass.

    Raises:
        InexactError: a first iteration is wrong (`check.check`).
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = timer()
    engine = variant.start(case, precision, device)
    start_s = timer() - began
    passes, errors = [], list[Errors]()
    for rounds in variant.passes(case.recipe.rounds):
        images = engine.enter(rounds)
        start_s += _seconds(engine, 1)
        errors += check.check(engine, rounds, exact, precision)
        passes.append(Pass(images, _blocks(engine, case.recipe.round_length, repeats, device)))
    if profile:
        write_text(profile, _kernels(engine, device))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Times(tuple(passes), check.worst(errors), start_s, peak)


def _kernels(engine: Held, device: torch.device) -> str:
    """Time of each kernel or operator in a few iterations, the slowest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        engine.iterate(PROFILED_ITERATIONS)
    table: str = profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=40)
    return f"{PROFILED_ITERATIONS} iterations\n{table}"


def _blocks(engine: Held, longest: int, repeats: int, device: torch.device) -> tuple[float, ...]:
    for _ in range(WARM_UP[device.type]):
        last = _seconds(engine, 1)
    length = max(1, min(longest, round(BLOCK_SECONDS / last)))
    return tuple(1000 * _seconds(engine, length) / length for _ in range(repeats))


def _seconds(engine: Held, iterations: int) -> float:
    began = timer()
    engine.iterate(iterations)
    return timer() - began
