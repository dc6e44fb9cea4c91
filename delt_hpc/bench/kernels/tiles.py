"""Tile sizes of the Triton kernels of BatchNorm layers, timed on every shape."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from delt_hpc.bench import machine
from delt_hpc.bench.kernels.cases import Batch, Case, cases
from delt_hpc.bench.kernels.measure import Trial
from delt_hpc.bench.kernels.table import PASSES
from delt_hpc.bench.timing import capture_stream, measure
from delt_hpc.errors import UserError
from delt_hpc.run.folder import write_csv
from delt_kernels import segments

IN_USE = {"TILE_BYTES": segments.TILE_BYTES, "TILE_CHANNELS": segments.TILE_CHANNELS}
_GRID = [{"TILE_BYTES": size, "TILE_CHANNELS": channels} for size in (2048, 4096, 8192) for channels in (32, 64, 128)]
CHOICES = (IN_USE, *(choice for choice in _GRID if choice != IN_USE))


def bench(networks: Sequence[str], images: int, dtype: torch.dtype, device: torch.device, out: Path) -> pd.DataFrame:
    """Time every tile size on every BatchNorm layer of the networks, and write all times to `kernel-tiles.csv`.

    Returns:
        the fastest tile size of each layer and pass, with its `ratio`: time of the one in use over its time.

    Raises:
        UserError: there is no GPU.
    """
    if device.type != "cuda":
        raise UserError("requires a GPU; this run is on the CPU", where="--tiles")
    batch = Batch.of(images, dtype, device)
    with capture_stream(device):
        rows = [
            row
            for network in networks
            for row in sweep((case for case in cases(network, batch) if case.operator.split()[0] == "bn"), device)
        ]
    table = pd.DataFrame(rows).assign(images=images, dtype=str(dtype).removeprefix("torch."), **machine.record())
    write_csv(out / "kernel-tiles.csv", lambda file: table.to_csv(file, index=False, float_format="%.5g"))
    return best(table)


def sweep(layers: Iterable[Case], device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each layer, tile size and pass."""
    for case in layers:
        for choice in CHOICES:
            with _tiles(choice):
                found = [measure(run, device) for run in Trial(case, "triton").passes]
            for name, taken in zip(PASSES, found, strict=True):
                shown = {"network": case.network, "operator": case.operator, "shape": case.shape, "pass": name}
                yield shown | choice | {"used": choice == IN_USE, "median_ms": taken.median_ms}


def best(table: pd.DataFrame) -> pd.DataFrame:
    """The fastest tile size of each layer and pass, beside the one in use."""
    keys = ["network", "operator", "shape", "pass"]
    fastest = table.loc[table.groupby(keys, sort=False)["median_ms"].idxmin(), [*keys, *IN_USE, "median_ms"]]
    used = table[table["used"]].set_index(keys)["median_ms"]
    ratio = fastest.set_index(keys)["median_ms"].rdiv(used)
    return fastest.assign(ratio=ratio.to_numpy())[["ratio", *fastest.columns]]


@contextmanager
def _tiles(choice: dict[str, int]) -> Iterator[None]:
    try:
        for name, value in choice.items():
            setattr(segments, name, value)
        yield
    finally:
        for name, value in IN_USE.items():
            setattr(segments, name, value)
