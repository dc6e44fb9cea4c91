"""The synthesis benchmark's table: a row for each network, precision and variant."""

from statistics import fmean
from typing import Any

import pandas as pd

from delt_hpc.bench.peaks import Peak
from delt_hpc.bench.synthesis_cases import Case
from delt_hpc.bench.synthesis_checks import ALLOWED
from delt_hpc.bench.synthesis_times import Times
from delt_hpc.bench.synthesis_variants import REFERENCE
from delt_hpc.config.schema import RecoverPrecision

_ELEMENT = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}  # bytes of an activation

COLUMNS = (
    "ratio", "ratio_tf32",  # image-iterations a second over those of the reference in float32, and in TF32
    "network", "size", "variant", "precision",
    "ms", "spread",  # of an iteration; slowest minus fastest block over the median
    "images",  # of a pass, on average
    "image_iterations_per_s",
    "s_per_image",  # of the whole recipe
    "floor_share", "floor_ms", "gflop", "gbyte",  # of an iteration
    "host_ms",  # in which the host launches an iteration
    "peak_gib", "start_s", "warmup_s",
    "loss_error", "loss_allowed", "gradient_error", "gradient_allowed",
    "failure",
    "ipc", "batch_size", "iterations", "rounds", "repeats",
    "peak_tflops", "peak_gb_per_s",
)  # fmt: skip
HOURS = "hours_"  # prefix of a column for each data set


def measured(times: Times, case: Case, precision: RecoverPrecision, peak: Peak) -> dict[str, Any]:
    """A row's numbers."""
    element, images = _ELEMENT[precision], [each.images for each in times.passes]
    floor_ms = 1000 * fmean(case.work.seconds(count, element, peak) for count in images)
    seconds = case.passes / times.images_per_s
    return {
        "ms": times.ms,
        "spread": times.spread,
        "images": times.images,
        "image_iterations_per_s": times.images_per_s,
        "s_per_image": seconds,
        "floor_share": floor_ms / times.ms,
        "floor_ms": floor_ms,
        "gflop": fmean(case.work.flops(count) for count in images) / 1e9,
        "gbyte": fmean(case.work.bytes(count, element) for count in images) / 1e9,
        "host_ms": times.host_ms,
        "peak_gib": None if times.peak_bytes is None else times.peak_bytes / 2**30,
        "start_s": times.start_s,
        "warmup_s": times.warmup_s,
        "loss_error": times.errors.loss,
        "loss_allowed": ALLOWED[precision].loss,
        "gradient_error": times.errors.gradient,
        "gradient_allowed": ALLOWED[precision].gradient,
        "peak_tflops": peak.flops_per_s / 1e12,
        "peak_gb_per_s": peak.bytes_per_s / 1e9,
    } | {f"{HOURS}{name}": classes * case.recipe.ipc * seconds / 3600 for name, classes in case.datasets.items()}


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """All columns in their order, ratios first; a number that is not there is NaN."""
    hours = dict.fromkeys(name for row in rows for name in row if name.startswith(HOURS))
    made = pd.DataFrame(rows).reindex(columns=[*COLUMNS, *hours])
    for column, precision in (("ratio", "float32"), ("ratio_tf32", "tf32")):
        of_reference = made[(made["variant"] == REFERENCE) & (made["precision"] == precision)]
        base = of_reference.set_index("network")["image_iterations_per_s"]
        made[column] = made["image_iterations_per_s"] / made["network"].map(base)
    return made
