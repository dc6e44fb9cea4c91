"""`delt-hpc bench kernels`: register with `bench_app.command("kernels")(bench_kernels)`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Names = Annotated[str | None, typer.Option(show_default="all on a GPU, convnet4 on a CPU", help="Separated by commas.")]


def bench_kernels(
    networks: Names = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, show_default="462 on a GPU, 2 on a CPU", help="Packed into one call, in eight segments."),
    ] = None,
    forms: Annotated[str, typer.Option(help="Separated by commas; eager is always measured.")] = (
        "published,torch,triton"
    ),
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(show_default="bfloat16 on a GPU, float32 on a CPU")
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Instead time the kernels' tile sizes on every layer, and name the best.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the table and the plot go.")] = Path("bench"),
) -> None:
    """Times of the recovery's operators on the shapes of real networks, and their errors."""
    import torch  # noqa: PLC0415

    from delt_hpc.bench import kernel_tiles, kernels  # noqa: PLC0415
    from delt_hpc.bench.kernel_cases import SIZES  # noqa: PLC0415

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    names = (networks or (",".join(SIZES) if gpu else "convnet4")).split(",")
    count = images or (kernels.PACKED if gpu else 2)
    kind: torch.dtype = getattr(torch, dtype or ("bfloat16" if gpu else "float32"))
    if tiles:
        typer.echo(kernels.text(kernel_tiles.bench(names, count, kind, device, out)))
        typer.echo(f"all times: {out}/kernel-tiles.csv")
        return
    typer.echo(kernels.described(kernels.bench(names, count, forms.split(","), kind, device, out)))
    typer.echo(f"table and plot: {out}/kernels.csv, {out}/kernels.png")
