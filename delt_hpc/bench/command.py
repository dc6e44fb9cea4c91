"""The commands `delt-hpc bench ...`."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from delt_hpc.errors import UserError

T = TypeVar("T", bound=str)

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of tables and plots.")]


@app.command("loading")
def bench_loading(
    threads: Annotated[str, typer.Option(help="Numbers of threads or workers to try, separated by commas.")] = "1,2",
    images: Annotated[int, typer.Option(help="Number of JPEGs of 500 x 375 pixels to read.")] = 512,
    network: Annotated[str | None, typer.Option(help="Also score the images by this network, as ranking does.")] = None,
    out: Out = Path("bench"),
) -> None:
    """Compare the image loaders: images per second."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", threads):
        raise UserError("must be positive integers", where=f"--threads {threads}", expected="e.g. 1,2,4")
    from delt_hpc.bench import loading  # noqa: PLC0415

    table = loading.bench([int(count) for count in threads.split(",")], images, network, out)
    typer.echo(table[["ratio", "backend", "threads", "images_per_s", "spread"]].to_string(index=False))
    typer.echo(f"table and plot: {out}/loading.csv, {out}/loading.png")


@app.command("ranking")
def bench_ranking(
    images: Annotated[int, typer.Option(min=20, help="Number of images of each of the eight classes.")] = 32,
    files: Annotated[
        int, typer.Option(min=256, help="Number of small PNG files (Fashion-MNIST if installed) to time.")
    ] = 8192,
    out: Out = Path("bench"),
) -> None:
    """Compare the rankings of backends and precisions, and the speed of the default and of plain settings."""
    from delt_hpc.bench import ranking, ranking_speed  # noqa: PLC0415

    table = ranking_speed.bench(files, out)
    typer.echo(table[list(ranking_speed.COLUMNS)].to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    typer.echo(f"table: {out}/{ranking_speed.FILE}")

    table = ranking.bench(images, out)
    typer.echo(table[list(ranking.COLUMNS)].to_string(index=False, float_format=lambda value: f"{value:.5f}"))
    typer.echo(f"table: {out}/ranking.csv")


@app.command("kernels")
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
    out: Out = Path("bench"),
) -> None:
    """Time the operators of recovery on the shapes of real networks, and check their results against float64."""
    import torch  # noqa: PLC0415

    from delt_hpc.bench.kernels import table  # noqa: PLC0415
    from delt_hpc.bench.kernels import tiles as tile_sizes  # noqa: PLC0415
    from delt_hpc.bench.kernels.cases import SEGMENTS, SIZES  # noqa: PLC0415
    from delt_hpc.bench.kernels.measure import VARIANTS  # noqa: PLC0415
    from delt_hpc.bench.machine import this_device  # noqa: PLC0415

    device = this_device()
    gpu = device.type == "cuda"
    names = _chosen("--networks", networks, SIZES, tuple(SIZES) if gpu else ("convnet4",))
    chosen = _chosen("--variants", variants, VARIANTS, ())
    count = images or (sum(SEGMENTS) if gpu else 2)
    kind: torch.dtype = getattr(torch, dtype or ("bfloat16" if gpu else "float32"))
    if tiles:
        typer.echo(table.text(tile_sizes.bench(names, count, kind, device, out)))
        typer.echo(f"all times: {out}/kernel-tiles.csv")
        return
    typer.echo(table.summary(table.bench(names, count, chosen, kind, device, out)))
    typer.echo(f"table: {out}/kernels.csv")


@app.command("synthesis")
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
    out: Out = Path("bench"),
) -> None:
    """Time recovery iterations of every engine; `delt-hpc plan --figures` estimates a run from the table."""
    from dataclasses import replace  # noqa: PLC0415

    from delt_hpc.bench import synthesis  # noqa: PLC0415
    from delt_hpc.bench.machine import this_device  # noqa: PLC0415
    from delt_hpc.bench.stages.workload import SIZES  # noqa: PLC0415

    default = synthesis.Suite.default(this_device())
    numbers = {"ipc": ipc, "batch_size": batch_size, "rounds": rounds, "repeats": repeats}
    suite = replace(
        default,
        networks=_chosen("--networks", networks, SIZES, default.networks),
        variants=_chosen("--variants", variants, synthesis.VARIANTS, default.variants),
        precisions=_chosen("--precisions", precisions, synthesis.PRECISIONS, default.precisions),
        profile=profile,
        **{name: number for name, number in numbers.items() if number is not None},
    )
    synthesis.bench(out, suite, typer.echo)
    typer.echo(f"table: {out}/{synthesis.FILE}")


@app.command("stages")
def bench_stages(
    stages: Annotated[str, typer.Option(help="Separated by commas.")] = "squeeze,rank,recover,evaluate",
    networks: Annotated[
        str | None,
        typer.Option(show_default="resnet18 on a GPU, convnet3 on a CPU", help="Separated by commas."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(show_default="the same network", help="Teacher of the students of evaluate."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=8, show_default="the usual one of each network", help="Height and width of images, pixels."),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, show_default="1000 on a GPU, 10 on a CPU", help="Classes of the data set.")
    ] = None,
    ipc: Annotated[
        int | None, typer.Option(min=1, show_default="50 on a GPU, 10 on a CPU", help="Images per class of recover.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, show_default="the default of each stage", help="Images in a batch.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Approximate duration of a timed block.")] = 2.0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed blocks of each row; their median counts.")] = 3,
    out: Out = Path("bench"),
) -> None:
    """Time the stages by their default settings; `delt-hpc plan --figures` estimates a run from the table."""
    from delt_hpc.bench.machine import this_device  # noqa: PLC0415
    from delt_hpc.bench.stages import table  # noqa: PLC0415
    from delt_hpc.bench.stages.workload import SIZES, Case  # noqa: PLC0415
    from delt_hpc.models import registry  # noqa: PLC0415
    from delt_hpc.run.allocator import keep_freed_memory  # noqa: PLC0415

    device = this_device()
    gpu = device.type == "cuda"
    count = classes or (1000 if gpu else 10)
    chosen = _chosen("--stages", stages, table.COMPARED, ())
    cases = []
    for network in (networks or ("resnet18" if gpu else "convnet3")).split(","):
        pixels = size or SIZES.get(network)
        if pixels is None:
            raise UserError("has no usual image size", where=f"--networks {network}", remedy="give --size")
        for name in (network, teacher or network):
            registry.check(name, count, pixels, where="--networks", needs_batch_norm=True)
        images = ipc or (50 if gpu else 10)
        cases += [Case(s, network, teacher or network, pixels, count, images, batch_size, device) for s in chosen]
    table.bench(cases, seconds, repeats, keep_freed_memory() and not gpu, out, typer.echo)
    typer.echo(f"table: {out}/{table.FILE}")


def _chosen(option: str, text: str | None, known: Collection[T], default: tuple[T, ...]) -> tuple[T, ...]:
    """The names in a comma-separated text, in the order in which they are known."""
    if text is None:
        return default
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"`{name}` is unknown", where=f"{option} {text}", expected=", ".join(known))
    return tuple(name for name in known if name in names)
