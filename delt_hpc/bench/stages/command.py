"""The command `delt-hpc bench stages`."""

from pathlib import Path
from typing import Annotated

import typer

from delt_hpc.errors import UserError


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
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the table.")] = Path("bench"),
) -> None:
    """Time the stages by their default settings; `delt-hpc plan --figures` estimates a run from the table."""
    from delt_hpc.bench.machine import this_device  # noqa: PLC0415
    from delt_hpc.bench.stages import compare  # noqa: PLC0415
    from delt_hpc.bench.stages.settings import COMPARED  # noqa: PLC0415
    from delt_hpc.bench.stages.workload import Case  # noqa: PLC0415
    from delt_hpc.bench.synthesis.cases import NETWORKS  # noqa: PLC0415
    from delt_hpc.models import registry  # noqa: PLC0415
    from delt_hpc.run.allocator import keep_freed_memory  # noqa: PLC0415

    device = this_device()
    gpu = device.type == "cuda"
    count = classes or (1000 if gpu else 10)
    for stage in stages.split(","):
        if stage not in COMPARED:
            raise UserError(f"`{stage}` is unknown", where=f"--stages {stages}", expected=", ".join(COMPARED))
    cases = []
    for network in (networks or ("resnet18" if gpu else "convnet3")).split(","):
        pixels = size or NETWORKS.get(network)
        if pixels is None:
            raise UserError("has no usual image size", where=f"--networks {network}", remedy="give --size")
        for name in (network, teacher or network):
            registry.check(name, count, pixels, where="--networks", needs_batch_norm=True)
        cases += [
            Case(stage, network, teacher or network, pixels, count, ipc or (50 if gpu else 10), batch_size, device)
            for stage in COMPARED
            if stage in stages.split(",")
        ]
    compare.bench(cases, seconds, repeats, keep_freed_memory() and not gpu, out, typer.echo)
    typer.echo(f"table: {out}/{compare.FILE}")
