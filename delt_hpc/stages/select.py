"""Select: copies of the chosen training images in selected/<class>/, numbered in their order of entry to recovery."""

import filecmp
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from delt_hpc.context import Context, StageFolder
from delt_hpc.data import bad_files
from delt_hpc.errors import UserError
from delt_hpc.ranking.selection import COLUMNS, TABLE, choose
from delt_hpc.ranking.table import read_ranking
from delt_hpc.run import checksums, late, stop
from delt_hpc.run.folder import write_csv, writing_folder


def select(context: Context) -> None:
    """Copy `ipc` images of every class, byte for byte, and list them in selected.csv."""
    run, config = context.run, context.config
    stage = StageFolder(context, "select", run.selected)
    if stage.done():
        return
    if not late.all_done([run.rank]):
        raise UserError(
            "the ranking is missing or incomplete", where=str(run.rank), remedy="run the stage `rank` for all classes"
        )
    checksums.require(run.rank, "rank", [f"../{run.ranking.name}"])
    stage.start()
    groups = dict(iter(read_ranking(run.ranking).groupby("class_index")))
    rows: list[tuple[int, str, int, str, float, str]] = []
    with context.reporter.bar("select", len(context.dataset.classes)) as bar:
        for class_index, folder in enumerate(context.dataset.classes.folders):
            group = groups.get(class_index)
            paths = [] if group is None else group["img_path"].tolist()
            if group is None or len(paths) < config.select.ipc:
                raise UserError(
                    f"class {folder} has {len(paths)} ranked images, but select.ipc is {config.select.ipc}",
                    where=str(run.ranking),
                    remedy=f"see which files were skipped ({run.rank}/*.{bad_files.TABLE}), or lower select.ipc",
                )
            chosen = choose(config.select.strategy, paths, config.select.ipc, config.seed, "select", class_index)
            sources = {f"{number:05d}{Path(paths[p]).suffix.lower()}": paths[p] for number, p in enumerate(chosen)}
            for number, (place, name) in enumerate(zip(chosen, sources, strict=True)):
                score = float(group["score"].iloc[place])
                rows.append((class_index, folder, number, paths[place], score, f"{folder}/{name}"))
            _copy(context.dataset.train.root, sources, run.selected / folder)
            bar.advance()
            stop.check()
    listed = pd.DataFrame(rows, columns=list(COLUMNS))
    write_csv(run.selected / TABLE, lambda file: listed.to_csv(file, index=False))
    stage.record("all", len(rows))
    stage.finish()


def _copy(root: Path, sources: Mapping[str, str], target: Path) -> None:
    """Copy a class's images to its folder, unless an earlier call has done so.

    Args:
        sources: for each name in the folder, the image's path below `root`.
    """
    if target.is_dir():
        if {path.name for path in target.iterdir()} == sources.keys() and all(
            filecmp.cmp(root / source, target / name, shallow=False) for name, source in sources.items()
        ):
            return
        shutil.rmtree(target)
    with writing_folder(target) as folder:
        for name, source in sources.items():
            try:
                shutil.copyfile(root / source, folder / name)
            except FileNotFoundError:
                raise UserError(
                    "a ranked training image no longer exists",
                    where=str(root / source),
                    remedy="restore the file, or start a new run",
                ) from None
