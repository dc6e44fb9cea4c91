"""The command `delt-hpc bench kernels`."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench_kernels(
    networks: Annotated[
        str | None,
        typer.Option(
            show_default="all on a GPU, convnet4 on a CPU",
            help="Of resnet18, resnet50 and convnet4, separated by commas.",
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, show_default="462 on a GPU, 2 on a CPU", help="Images in a call, in eight segments."),
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Separated by commas; torch, the baseline of all ratios, is always measured.")
    ] = "torch-compiled,triton",
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(show_default="bfloat16 on a GPU, float32 on a CPU", help="Type of the activations."),
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Time the tile sizes of the Triton kernels instead; requires a GPU.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the tables.")] = Path("bench"),
) -> None:
    """Time the operators of recovery on the shapes of real networks, and check their results against float64."""
    import torch  # noqa: PLC0415

    from delt_hpc.bench.kernels import table  # noqa: PLC0415
    from delt_hpc.bench.kernels import tiles as tile_sizes  # noqa: PLC0415
    from delt_hpc.bench.kernels.cases import SEGMENTS, SIZES  # noqa: PLC0415
    from delt_hpc.bench.machine import this_device  # noqa: PLC0415

    device = this_device()
    gpu = device.type == "cuda"
    names = (networks or (",".join(SIZES) if gpu else "convnet4")).split(",")
    count = images or (sum(SEGMENTS) if gpu else 2)
    kind: torch.dtype = getattr(torch, dtype or ("bfloat16" if gpu else "float32"))
    if tiles:
        typer.echo(table.text(tile_sizes.bench(names, count, kind, device, out)))
        typer.echo(f"all times: {out}/kernel-tiles.csv")
        return
    typer.echo(table.summary(table.bench(names, count, variants.split(","), kind, device, out)))
    typer.echo(f"table: {out}/kernels.csv")
