"""Which tiles suit which shape: the kernels of BatchNorm layers, timed with each choice of `delt_kernels.segments`."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from delt_hpc.bench.kernel_case import Batch, Case
from delt_hpc.bench.kernel_cases import cases
from delt_hpc.bench.kernel_trial import Trial
from delt_hpc.bench.kernels import PASSES
from delt_hpc.bench.machine import facts
from delt_hpc.bench.stopwatch import times, working_stream
from delt_hpc.errors import UserError
from delt_hpc.run.folder import write_csv
from delt_kernels import segments

IN_USE = {"TILE": segments.TILE, "TILE_CHANNELS": segments.TILE_CHANNELS}
OTHERS = [{"TILE": tile, "TILE_CHANNELS": channels} for tile in (1024, 2048, 4096) for channels in (32, 64, 128)]
CHOICES = (IN_USE, *(choice for choice in OTHERS if choice != IN_USE))


def bench(networks: Sequence[str], images: int, dtype: torch.dtype, device: torch.device, out: Path) -> pd.DataFrame:
    """Time every choice on every BatchNorm layer of the networks, and write all times to `kernel-tiles.csv` in `out`.

    Raises:
        UserError: there is no CUDA device.

    Returns:
        the best choice of each layer and pass: ratio (time of the constants in use to the best one), what was measured,
        the constants, ms.
    """
    if device.type != "cuda":
        raise UserError("tiles can be timed on a GPU only", where="--tiles", expected="a CUDA device")
    batch = Batch.of(images, dtype, device)
    with working_stream(device):
        rows = [
            row
            for network in networks
            for row in sweep((case for case in cases(network, batch) if case.operator.split()[0] == "bn"), device)
        ]
    table = pd.DataFrame(rows).assign(images=images, dtype=str(dtype).removeprefix("torch."), **facts())
    write_csv(out / "kernel-tiles.csv", lambda file: table.to_csv(file, index=False, float_format="%.5g"))
    return best(table)


def sweep(layers: Iterable[Case], device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each layer, choice and pass."""
    for case in layers:
        for choice in CHOICES:
            with _constants(choice):
                found = [times(run, device) for run in Trial(case, case.ours("triton")).passes]
            for name, taken in zip(PASSES, found, strict=True):
                shown = {"network": case.network, "operator": case.operator, "shape": case.shape, "pass": name}
                yield shown | choice | {"used": choice == IN_USE, "median_ms": taken.median_ms}


def best(table: pd.DataFrame) -> pd.DataFrame:
    """The quickest choice of each layer and pass, beside the one in use."""
    keys = ["network", "operator", "shape", "pass"]
    quickest = table.loc[table.groupby(keys, sort=False)["median_ms"].idxmin(), [*keys, *IN_USE, "median_ms"]]
    used = table[table["used"]].set_index(keys)["median_ms"]
    ratio = quickest.set_index(keys)["median_ms"].rdiv(used)
    return quickest.assign(ratio=ratio.to_numpy())[["ratio", *quickest.columns]]


@contextmanager
def _constants(choice: dict[str, int]) -> Iterator[None]:
    try:
        for name, value in choice.items():
            setattr(segments, name, value)
        yield
    finally:
        for name, value in IN_USE.items():
            setattr(segments, name, value)
