"""Recovery iterations of every engine side by side: time, cost of a whole recipe, memory, share of the floor."""

import gc
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch._inductor.utils import fresh_cache

from delt_hpc.bench import peaks, synthesis_page, synthesis_table
from delt_hpc.bench.machine import facts
from delt_hpc.bench.synthesis_cases import Case
from delt_hpc.bench.synthesis_checks import expected
from delt_hpc.bench.synthesis_options import Options
from delt_hpc.bench.synthesis_runs import Outcome
from delt_hpc.bench.synthesis_times import Times, measure
from delt_hpc.bench.synthesis_variants import VARIANTS, Variant, missing
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.recovery.precision import NumericFormat
from delt_hpc.run.folder import write_csv, write_text, writing

REASON = 200  # characters of an error that a row tells


def bench(out: Path, options: Options, say: Callable[[str], None]) -> pd.DataFrame:
    """Measure, and write `synthesis.csv`, `synthesis.md` and a plot for each network to `out`.

    Weights and images are random, statistics real (`cases`). Every first iteration's loss and image gradient are
    checked against float64 before anything is timed; what is wrong or cannot run gets a row that says so, and no
    number. The files are written again after every row: a run that is stopped keeps what it has.

    Args:
        say: told of every row.

    Returns:
        the CSV's rows: one for each network, precision and variant.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reached = {
        precision: peaks.measure(NumericFormat.of(options.recipe.recover(precision=precision), device), device)
        for precision in options.precisions
        if not missing(precision, device)
    }
    machine, rows = facts(), list[dict[str, Any]]()
    table = pd.DataFrame()
    for network in options.networks:
        case = Case(network, options.recipe, device)
        due = cache(partial(expected, case, device))
        for precision in options.precisions:
            for name in options.variants:
                if precision not in VARIANTS[name].precisions:
                    continue
                found = _attempt(VARIANTS[name], case, precision, due, options.repeats, device)
                row = {"network": network, "size": case.size, "variant": name, "precision": precision}
                row |= vars(options.recipe) | {"repeats": options.repeats}
                if isinstance(found, Times):
                    row |= synthesis_table.measured(found, case, precision, reached[precision])
                else:
                    row["failure"] = found
                rows.append(row)
                table = synthesis_table.table(rows).assign(**machine)
                _write(out, table, network)
                say(synthesis_page.line(table.iloc[-1]))
    return table


def _attempt(
    variant: Variant,
    case: Case,
    precision: RecoverPrecision,
    due: Callable[[], dict[int, Outcome]],
    repeats: int,
    device: torch.device,
) -> Times | str:
    """The variant's times, or why there are none."""
    obstacle = variant.obstacle(precision, device)
    if obstacle:
        return obstacle
    torch.compiler.reset()
    gc.collect()
    with fresh_cache():  # compilers start from nothing, but for Triton kernels that this process has used before
        try:
            return measure(variant, case, precision, due(), repeats, device)
        except Exception as error:  # memory, compilers, kernels: whatever it is, the others can still be measured
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return text if len(text) <= REASON else text[:REASON] + " ..."


def _write(out: Path, table: pd.DataFrame, network: str) -> None:
    write_csv(out / "synthesis.csv", partial(table.to_csv, index=False, float_format="%.6g"))
    write_text(out / "synthesis.md", synthesis_page.markdown(table))
    timed = table[table["network"] == network].dropna(subset=["ms"])
    if len(timed):
        with writing(out / f"synthesis-{network}.png") as file:
            file.write(synthesis_page.plot(timed, network))
