"""`delt-hpc bench synthesis`: iterations of recovery, engine by engine and precision by precision."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch._inductor.utils import fresh_cache
from torch.profiler import ProfilerActivity

from delt_hpc.bench import machine
from delt_hpc.bench.stages.recovery import PackedRecovery, ReferenceRecovery
from delt_hpc.bench.stages.rows import Row, time_in_turns
from delt_hpc.bench.stages.workload import ITERATIONS, SIZES, Case, Workload
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.recovery.auto import image_iterations_of
from delt_hpc.recovery.batches import plan
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.run.folder import write_csv, write_text
from delt_kernels.dispatch import Optimisation, without

FILE = "synthesis.csv"
REFERENCE = "reference"
PRECISIONS: tuple[RecoverPrecision, ...] = ("float32", "tf32", "bfloat16", "float16")


class Variant(NamedTuple):
    """Options of the packed engine.

    Attributes:
        packed: one pass with a batch in each round, or one batch a pass.
        without: an optimisation of the Triton kernels that is switched off.
    """

    kernels: str
    compiled: bool = False
    packed: bool = True
    without: Optimisation | None = None


VARIANTS: dict[str, Variant | None] = {
    REFERENCE: None,
    **{
        kernels + "-compiled" * compiled + "-packed" * packed: Variant(kernels, compiled, packed)
        for kernels in ("torch", "triton")
        for compiled in (False, True)
        for packed in (False, True)
    },
    "triton-packed-no-bitmask": Variant("triton", without="relu_bitmask"),
    "triton-packed-no-fork": Variant("triton", without="bn_stats_fork"),
}
BLOCK_SECONDS = 0.5
PROFILED_STEPS = 3
UNSTEADY = 0.2  # spread above which a row's times mean little
COLUMNS = (
    "ratio", "ratio_tf32",  # image-iterations per second over those of the reference in float32, and in TF32
    "network", "size", "variant", "precision",
    "ms", "spread",  # of an iteration; slowest minus fastest block over the median
    "images",  # of a pass, on average
    "image_iterations_per_s",
    "s_per_image",  # of the whole recipe
    "floor_share", "floor_ms",  # of an iteration, with the peaks measured in the same run
    "peak_gib", "start_s", "error", "failure",
    "ipc", "batch_size", "rounds", "iterations", "repeats", "peak_tflops", "peak_gb_per_s",
)  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """What is measured; by default what takes about a minute on a CPU.

    Attributes:
        repeats: blocks of iterations, of which the median counts.
        profile: also write a table of the kernels of each variant.
    """

    networks: tuple[str, ...] = ("convnet3",)
    variants: tuple[str, ...] = (REFERENCE, "torch", "torch-packed", "torch-compiled-packed")
    precisions: tuple[RecoverPrecision, ...] = ("float32",)
    ipc: int = 8
    batch_size: int = 8
    rounds: int = 4
    repeats: int = 3
    profile: bool = False

    @staticmethod
    def default(device: torch.device) -> "Suite":
        """On a GPU all networks, and the published recipe."""
        if device.type == "cpu":
            return Suite()
        variants = tuple(name for name in VARIANTS if name not in ("torch", "torch-packed"))
        return Suite(tuple(SIZES), variants, PRECISIONS, ipc=50, batch_size=100, rounds=8, repeats=5)

    def case(self, network: str, device: torch.device) -> Case:
        """With the classes of the largest registered data set of the network's image size."""
        size = SIZES[network]
        classes = max(spec.classes for spec in SPECS.values() if spec.size == size)
        return Case("recover", network, network, size, classes, self.ipc, self.batch_size, device, self.rounds)


def start(variant: str, case: Case, precision: RecoverPrecision) -> Workload:
    """The engine of a row."""
    chosen = VARIANTS[variant]
    if chosen is None:
        return ReferenceRecovery(case, tf32=precision == "tf32", cudnn_benchmark=True)
    return PackedRecovery(
        case, packed=chosen.packed, precision=precision, kernels=chosen.kernels, compile=chosen.compiled, graphs=True
    )


def bench(out: Path, suite: Suite, echo: Callable[[str], None]) -> pd.DataFrame:
    """Measure, and write `synthesis.csv` to `out`.

    A variant that fails or is wrong gets a row that says why, without times. The file is written after every row, so
    that a run that is stopped keeps what it has.

    Returns:
        the rows of the CSV file: one for each network, precision and variant.
    """
    device = machine.this_device()
    ran_with, rows = machine.record(), list[dict[str, Any]]()
    made = pd.DataFrame()
    for case, precision, variant in _rows(suite, device):
        profile = out / f"profile-{case.network}-{precision}-{variant}.txt" if suite.profile else None
        named = {"network": case.network, "size": case.size, "variant": variant, "precision": precision}
        named |= {"ipc": suite.ipc, "batch_size": suite.batch_size, "rounds": suite.rounds, "iterations": ITERATIONS}
        rows.append(_measured(variant, case, precision, suite.repeats, profile) | named)
        made = _table(rows).assign(**ran_with)
        write_csv(out / FILE, partial(made.to_csv, index=False, float_format="%.6g"))
        echo(_line(made.iloc[-1]))
    return made


def _rows(suite: Suite, device: torch.device) -> Iterator[tuple[Case, RecoverPrecision, str]]:
    for network in suite.networks:
        case = suite.case(network, device)
        for precision in suite.precisions:
            for variant in suite.variants:
                if variant != REFERENCE or precision in ("float32", "tf32"):  # the published code computes in float32
                    yield case, precision, variant


def _measured(
    variant: str, case: Case, precision: RecoverPrecision, repeats: int, profile: Path | None
) -> dict[str, Any]:
    """Columns of a row: its times, or why there are none."""
    obstacle = _obstacle(variant, precision, case.device)
    if obstacle:
        return {"failure": obstacle}
    torch.compiler.reset()
    gc.collect()
    row = Row(case, partial(start, variant, case, precision), tf32=precision == "tf32")
    chosen = VARIANTS[variant]
    with (
        warnings.catch_warnings(),
        without(chosen.without) if chosen and chosen.without else nullcontext(),
        fresh_cache(),
    ):  # so that compilation is measured, except of Triton kernels that this process has used before
        # The engine would go on uncompiled: that is another variant.
        warnings.filterwarnings("error", "torch.compile failed", RuntimeWarning)
        time_in_turns([row], BLOCK_SECONDS, repeats)
        if profile and row.rate:
            write_text(profile, _kernels(row.workload, case.device))
    found = row.numbers()
    if row.rate is None:
        return found
    batch = plan(case.classes, case.ipc, case.recover())[0]
    work = image_iterations_of(batch, Schedule.of(case.recover()), ITERATIONS) / len(batch.entries)  # of an image
    return found | {"image_iterations_per_s": row.rate, "s_per_image": work / row.rate}


def _obstacle(variant: str, precision: RecoverPrecision, device: torch.device) -> str:
    """Why it cannot run here, or nothing."""
    if variant.startswith("triton") and device.type == "cpu":
        return "Triton kernels require a GPU; this run is on the CPU"
    if precision == "tf32" and (device.type == "cpu" or torch.cuda.get_device_capability(device) < (8, 0)):
        return "this device has no TF32"
    return ""


def _kernels(workload: Workload, device: torch.device) -> str:
    """Time of each kernel or operator in a few steps, the slowest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        workload.block(PROFILED_STEPS)
    table: str = profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=40)
    return f"{PROFILED_STEPS} steps\n{table}"


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """All columns in their order, with the ratios; a missing number is NaN."""
    made = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    for column, precision in (("ratio", "float32"), ("ratio_tf32", "tf32")):
        of_reference = made[(made["variant"] == REFERENCE) & (made["precision"] == precision)]
        base = of_reference.set_index("network")["image_iterations_per_s"]
        made[column] = made["image_iterations_per_s"] / made["network"].map(base)
    return made


def _line(row: "pd.Series[Any]") -> str:
    """One row in short."""
    name = f"{row['network']} {row['precision']} {row['variant']}: "
    if isinstance(row["failure"], str):
        return name + row["failure"]
    ratio = "" if pd.isna(row["ratio"]) else f"{row['ratio']:.2f} x reference, "
    unsteady = f"; unsteady, blocks differ by {row['spread']:.0%}" if row["spread"] > UNSTEADY else ""
    return name + ratio + f"{row['ms']:.3g} ms, {row['image_iterations_per_s']:.4g} image-iterations/s" + unsteady
