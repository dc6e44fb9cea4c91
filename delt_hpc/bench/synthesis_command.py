"""`delt-hpc bench synthesis`: register with `bench_app.command("synthesis")(bench_synthesis)`."""

from pathlib import Path
from typing import Annotated

import typer

_LISTED = "Separated by commas."


def bench_synthesis(
    networks: Annotated[
        str | None, typer.Option(show_default="all on a GPU, convnet3 on a CPU", help=f"Teachers. {_LISTED}")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(show_default="on a CPU some of them", help=f"Ways to compute an iteration. {_LISTED}")
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(
            show_default="all on a GPU, float32 on a CPU", help=f"Of float32, tf32, bfloat16, float16. {_LISTED}"
        ),
    ] = None,
    ipc: Annotated[
        int | None, typer.Option(show_default="50 on a GPU, 8 on a CPU", help="Images per class of the recipe.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(show_default="100 on a GPU, 8 on a CPU", help="Images of a batch.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(show_default="4000", help="Of a batch in the recipe; how many are timed follows.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(show_default="8 on a GPU, 4 on a CPU", help="In which a batch's images enter.")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(show_default="5 on a GPU, 3 on a CPU", help="Blocks of iterations; the median counts."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where tables and plots go.")] = Path("bench"),
) -> None:
    """Recovery iterations of every engine: time, cost of a whole recipe, memory, share of the floor."""
    import torch  # noqa: PLC0415

    from delt_hpc.bench import synthesis  # noqa: PLC0415
    from delt_hpc.bench.synthesis_options import Options  # noqa: PLC0415

    usual = Options.usual(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    options = usual.changed(networks, variants, precisions, ipc, batch_size, iterations, rounds, repeats)
    synthesis.bench(out, options, typer.echo)
    typer.echo(f"page, table and plots: {out}/synthesis.md, {out}/synthesis.csv, {out}/synthesis-*.png")
