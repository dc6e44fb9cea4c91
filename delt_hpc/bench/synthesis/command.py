"""The command `delt-hpc bench synthesis`."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from delt_hpc.errors import UserError

T = TypeVar("T", bound=str)


def bench_synthesis(
    networks: Annotated[
        str | None,
        typer.Option(show_default="all on a GPU, convnet3 on a CPU", help="Teachers, separated by commas."),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            show_default="all on a GPU, some on a CPU",
            help="Engines, e.g. reference,triton-packed; docs/benchmarks explains them.",
        ),
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(
            show_default="all on a GPU, float32 on a CPU",
            help="Of float32, tf32, bfloat16 and float16, separated by commas.",
        ),
    ] = None,
    ipc: Annotated[
        int | None, typer.Option(min=1, show_default="50 on a GPU, 8 on a CPU", help="Images per class.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, show_default="100 on a GPU, 8 on a CPU", help="Images in a batch.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, show_default="8 on a GPU, 4 on a CPU", help="Early-late rounds.")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, show_default="5 on a GPU, 3 on a CPU", help="Timed blocks; their median counts."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also write a table of the kernels of each variant (torch.profiler).")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the tables.")] = Path("bench"),
) -> None:
    """Time recovery iterations of every engine; `delt-hpc plan --figures` estimates a run from the table."""
    from dataclasses import replace  # noqa: PLC0415

    from delt_hpc.bench.machine import this_device  # noqa: PLC0415
    from delt_hpc.bench.synthesis.cases import NETWORKS  # noqa: PLC0415
    from delt_hpc.bench.synthesis.suite import Suite, bench  # noqa: PLC0415
    from delt_hpc.bench.synthesis.variants import PRECISIONS, VARIANTS  # noqa: PLC0415

    default = Suite.default(this_device())
    recipe = {"ipc": ipc, "batch_size": batch_size, "rounds": rounds}
    suite = Suite(
        _chosen("--networks", networks, NETWORKS, default.networks),
        _chosen("--variants", variants, VARIANTS, default.variants),
        _chosen("--precisions", precisions, PRECISIONS, default.precisions),
        replace(default.recipe, **{name: value for name, value in recipe.items() if value is not None}),
        repeats or default.repeats,
        profile,
    )
    bench(out, suite, typer.echo)
    typer.echo(f"table: {out}/synthesis.csv")


def _chosen(option: str, text: str | None, known: Collection[T], default: tuple[T, ...]) -> tuple[T, ...]:
    """The names in a comma-separated text, in the order in which they are known."""
    if text is None:
        return default
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"`{name}` is unknown", where=f"{option} {text}", expected=", ".join(known))
    return tuple(name for name in known if name in names)
