"""The synthesis benchmark's table: a row for each network, precision and variant."""

from statistics import fmean
from typing import Any

import pandas as pd

from delt_hpc.bench.peaks import Peak
from delt_hpc.bench.synthesis.cases import Case
from delt_hpc.bench.synthesis.measure import Times
from delt_hpc.bench.synthesis.variants import REFERENCE
from delt_hpc.config.schema import RecoverPrecision

BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}  # of an activation

UNSTEADY = 0.2  # spread above which a row's times mean little

COLUMNS = (
    "ratio", "ratio_tf32",  # image-iterations per second over those of the reference in float32, and in TF32
    "network", "size", "variant", "precision",
    "ms", "spread",  # of an iteration; slowest minus fastest block over the median
    "images",  # of a pass, on average
    "image_iterations_per_s",
    "s_per_image",  # of the whole recipe
    "floor_share", "floor_ms", "gflop", "gbyte",  # of an iteration, with the peaks measured in the same run
    "peak_gib", "start_s", "loss_error", "gradient_error", "failure",
    "ipc", "batch_size", "rounds", "iterations", "repeats", "peak_tflops", "peak_gb_per_s",
)  # fmt: skip


def numbers(times: Times, case: Case, precision: RecoverPrecision, peak: Peak) -> dict[str, Any]:
    """What was measured, as columns of a row."""
    element, images = BYTES[precision], [p.images for p in times.passes]
    floor_ms = 1000 * fmean(case.work.seconds(count, element, peak) for count in images)
    return {
        "ms": times.ms,
        "spread": times.spread,
        "images": times.images,
        "image_iterations_per_s": times.image_iterations_per_s,
        "s_per_image": case.iterations_per_image / times.image_iterations_per_s,
        "floor_share": floor_ms / times.ms,
        "floor_ms": floor_ms,
        "gflop": fmean(case.work.flops(count) for count in images) / 1e9,
        "gbyte": fmean(case.work.bytes(count, element) for count in images) / 1e9,
        "peak_gib": None if times.peak_bytes is None else times.peak_bytes / 2**30,
        "start_s": times.start_s,
        "loss_error": times.errors.loss,
        "gradient_error": times.errors.gradient,
        "peak_tflops": peak.flops_per_s / 1e12,
        "peak_gb_per_s": peak.bytes_per_s / 1e9,
    }


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """All columns in their order, with the ratios; a missing number is NaN."""
    made = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    for column, precision in (("ratio", "float32"), ("ratio_tf32", "tf32")):
        of_reference = made[(made["variant"] == REFERENCE) & (made["precision"] == precision)]
        base = of_reference.set_index("network")["image_iterations_per_s"]
        made[column] = made["image_iterations_per_s"] / made["network"].map(base)
    return made


def line(row: "pd.Series[Any]") -> str:
    """One row in short."""
    name = f"{row['network']} {row['precision']} {row['variant']}: "
    if isinstance(row["failure"], str):
        return name + row["failure"]
    ratio = "" if pd.isna(row["ratio"]) else f"{row['ratio']:.2f} x reference, "
    unsteady = f"; unsteady, blocks differ by {row['spread']:.0%}" if row["spread"] > UNSTEADY else ""
    return name + ratio + f"{row['ms']:.3g} ms, {row['image_iterations_per_s']:.4g} image-iterations/s" + unsteady
