"""All networks, precisions and variants of the synthesis benchmark, one after the other."""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch._inductor.utils import fresh_cache

from delt_hpc.bench import machine
from delt_hpc.bench.peaks import Peak, measured_peak
from delt_hpc.bench.synthesis import table
from delt_hpc.bench.synthesis.cases import NETWORKS, Case, Recipe
from delt_hpc.bench.synthesis.check import expected
from delt_hpc.bench.synthesis.engines import Outcome
from delt_hpc.bench.synthesis.measure import Times, measure
from delt_hpc.bench.synthesis.variants import PRECISIONS, REFERENCE, VARIANTS, Variant, unsupported
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.recovery.precision import NumericFormat, backend_flags
from delt_hpc.run.folder import write_csv

MESSAGE_LENGTH = 200  # characters of an error in a row


@dataclass(frozen=True)
class Suite:
    """What is measured.

    Attributes:
        repeats: blocks of iterations, of which the median counts.
        profile: also write a table of the kernels of each variant.
    """

    networks: tuple[str, ...]
    variants: tuple[str, ...]
    precisions: tuple[RecoverPrecision, ...]
    recipe: Recipe
    repeats: int
    profile: bool = False

    @staticmethod
    def default(device: torch.device) -> "Suite":
        """On a GPU the published recipe and all networks; on a CPU what takes about a minute."""
        if device.type == "cuda":
            variants = tuple(name for name in VARIANTS if name not in ("torch", "torch-packed"))
            return Suite(tuple(NETWORKS), variants, PRECISIONS, Recipe(), 5)
        variants = (REFERENCE, "torch", "torch-packed", "torch-compiled-packed")
        return Suite(("convnet3",), variants, ("float32",), Recipe(ipc=8, batch_size=8, rounds=4), 3)


def bench(out: Path, suite: Suite, echo: Callable[[str], None]) -> pd.DataFrame:
    """Measure, and write `synthesis.csv` to `out`.

    A variant that fails or is wrong gets a row that says why, without times. The file is written after every row, so
    that a run that is stopped keeps what it has.

    Returns:
        the rows of the CSV file: one for each network, precision and variant.
    """
    device = machine.this_device()
    peaks = {p: _peak(p, device) for p in suite.precisions if not unsupported(p, device)}
    ran_with, rows = machine.record(), list[dict[str, Any]]()
    made = pd.DataFrame()
    for network in suite.networks:
        case = Case(network, suite.recipe, device)
        exact = cache(partial(expected, case, device))
        for precision in suite.precisions:
            for name in suite.variants:
                if name == REFERENCE and precision in ("bfloat16", "float16"):
                    continue  # the published code computes in float32
                profile = out / f"profile-{network}-{precision}-{name}.txt" if suite.profile else None
                found = _attempt(VARIANTS[name], case, precision, exact, suite.repeats, device, profile)
                row = {"network": network, "size": case.size, "variant": name, "precision": precision}
                row |= vars(suite.recipe) | {"repeats": suite.repeats}
                if isinstance(found, Times):
                    row |= table.numbers(found, case, precision, peaks[precision])
                else:
                    row["failure"] = found
                rows.append(row)
                made = table.table(rows).assign(**ran_with)
                write_csv(out / "synthesis.csv", partial(made.to_csv, index=False, float_format="%.6g"))
                echo(table.line(made.iloc[-1]))
    return made


def _peak(precision: RecoverPrecision, device: torch.device) -> Peak:
    chosen = NumericFormat.of(Recipe().recover(precision=precision), device)
    with backend_flags(tf32=chosen.tf32):
        return measured_peak(chosen.network_dtype or torch.float32, device)


def _attempt(
    variant: Variant,
    case: Case,
    precision: RecoverPrecision,
    exact: Callable[[], dict[int, Outcome]],
    repeats: int,
    device: torch.device,
    profile: Path | None,
) -> Times | str:
    """The variant's times, or why there are none."""
    obstacle = variant.obstacle(precision, device)
    if obstacle:
        return obstacle
    torch.compiler.reset()
    gc.collect()
    with (
        warnings.catch_warnings(),
        fresh_cache(),
    ):  # so that compilation is measured, except of Triton kernels that this process has used before
        # The engine would go on uncompiled: that is another variant.
        warnings.filterwarnings("error", "torch.compile failed", RuntimeWarning)
        try:
            return measure(variant, case, precision, exact(), repeats, device, profile)
        except Exception as error:  # whatever fails in one variant, the others can still be measured
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return text if len(text) <= MESSAGE_LENGTH else text[:MESSAGE_LENGTH] + " ..."
