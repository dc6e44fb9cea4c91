"""Select: copies of the chosen training images in selected/<class>/, numbered in the order they enter recovery."""

import shutil
from pathlib import Path

import pandas as pd

from delt_hpc.context import Context, StageFolder
from delt_hpc.data import bad_files
from delt_hpc.errors import UserError
from delt_hpc.ranking.selection import COLUMNS, TABLE, choose
from delt_hpc.ranking.table import read_ranking
from delt_hpc.run import stop
from delt_hpc.run.folder import is_done, write_csv, writing


def select(context: Context) -> None:
    """Copy `ipc` images of every class as they are, and list them in selected.csv."""
    run, config = context.run, context.config
    stage = StageFolder(context, "select", run.selected)
    if stage.done:
        return
    if not is_done(run.rank):
        raise UserError(
            "the ranking is not complete", where=str(run.rank), remedy="run the stage `rank` for all classes"
        )
    stage.start()
    table = read_ranking(run.ranking)
    rows: list[tuple[int, str, int, str, float, str]] = []
    with context.reporter.bar("select", len(context.dataset.classes)) as bar:
        for class_index, folder in enumerate(context.dataset.classes.folders):
            stop.check()
            group = table[table["class_index"] == class_index]
            paths = group["img_path"].tolist()
            if len(paths) < config.select.ipc:
                raise UserError(
                    f"class {folder} has {len(paths)} ranked images, {config.select.ipc} are asked for",
                    where=str(run.ranking),
                    remedy=f"see which files were left out ({run.rank}/*.{bad_files.TABLE}), or lower select.ipc",
                )
            chosen = choose(config.select.strategy, paths, config.select.ipc, config.seed, "select", class_index)
            for number, place in enumerate(chosen):
                file = f"{folder}/{number:05d}{Path(paths[place]).suffix.lower()}"
                if not (run.selected / file).exists():  # an earlier process may have stopped half-way
                    _copy(context.dataset.train.root / paths[place], run.selected / file)
                rows.append((class_index, folder, number, paths[place], float(group["score"].iloc[place]), file))
            bar.advance()
    listed = pd.DataFrame(rows, columns=list(COLUMNS))
    write_csv(run.selected / TABLE, lambda file: listed.to_csv(file, index=False))
    stage.record("all", len(rows))
    stage.finish()


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as original, writing(target) as copy:
            shutil.copyfileobj(original, copy)
    except FileNotFoundError:
        raise UserError(
            "a ranked training image is not there any more", where=str(source), remedy="put it back, or start a new run"
        ) from None
