"""Select: the images that recovery starts from in selected/<class>/, numbered in their order of entry to recovery.

They are copies of chosen training images, or mosaics of chosen crops (rank.candidates).
"""

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from delt_hpc.context import Context, StageFolder
from delt_hpc.data import bad_files
from delt_hpc.data.transforms import BadImageError, Pixels, decode
from delt_hpc.distilled.manifest import SEPARATOR
from delt_hpc.errors import UserError
from delt_hpc.ranking import mosaic
from delt_hpc.ranking.selection import COLUMNS, TABLE, choose
from delt_hpc.ranking.table import CROP, read_ranking
from delt_hpc.run import checksums, late, stop
from delt_hpc.run.folder import write_csv, writing_folder

Row = tuple[Any, ...]


def select(context: Context) -> None:
    """Make `ipc` images of every class and list them in selected.csv; the crops of mosaics also in mosaics.csv."""
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
    crops = config.rank.candidates == "crops"
    needed = config.images_of_class(context.dataset.spec.size)
    rows: list[Row] = []
    tiles: list[Row] = []
    with context.reporter.bar("select", len(context.dataset.classes)) as bar:
        for class_index, folder in enumerate(context.dataset.classes.folders):
            group = groups.get(class_index)
            paths = [] if group is None else group["img_path"].tolist()
            if group is None or len(paths) < needed:
                kind, why = ("crops", f", which takes {needed} crops") if crops else ("images", "")
                raise UserError(
                    f"class {folder} has {len(paths)} ranked {kind}, but select.ipc is {config.select.ipc}{why}",
                    where=str(run.ranking),
                    remedy=f"see which files were skipped ({run.rank}/*.{bad_files.TABLE}), or lower select.ipc",
                )
            chosen = choose(config.select.strategy, paths, needed, config.seed, "select", class_index)
            if crops:
                tiles_of_class = _compose(context, group.iloc[chosen], class_index)
                tiles += tiles_of_class
                rows += _mosaic_rows(tiles_of_class, class_index, folder)
            else:
                rows += _copy_class(context, group.iloc[chosen], class_index)
            bar.advance()
            stop.check()
    if crops:
        composed = pd.DataFrame(tiles, columns=list(mosaic.COLUMNS))
        write_csv(run.selected / mosaic.TABLE, lambda file: composed.to_csv(file, index=False))
    listed = pd.DataFrame(rows, columns=list(COLUMNS))
    write_csv(run.selected / TABLE, lambda file: listed.to_csv(file, index=False))
    stage.record("all", len(rows))
    stage.finish()


def _copy_class(context: Context, chosen: pd.DataFrame, class_index: int) -> list[Row]:
    """Copy the chosen images byte for byte; returns their rows of selected.csv."""
    folder = context.dataset.classes.folders[class_index]
    paths = chosen["img_path"].tolist()
    sources = {f"{number:05d}{Path(path).suffix.lower()}": path for number, path in enumerate(paths)}
    _copy(context.dataset.train.root, sources, context.run.selected / folder)
    return [
        (class_index, folder, number, path, float(score), f"{folder}/{name}")
        for number, ((name, path), score) in enumerate(zip(sources.items(), chosen["score"], strict=True))
    ]


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


def _compose(context: Context, chosen: pd.DataFrame, class_index: int) -> list[Row]:
    """Write the mosaics of a class as PNG files, in place of those of an earlier call.

    Args:
        chosen: the ranking's rows of the crops, in the order of selection.

    Returns:
        the rows of mosaics.csv: a crop each, by mosaic, row and column.
    """
    ipc, size = context.config.select.ipc, context.dataset.spec.size
    side, crops = context.config.rank.tiles_at(size), mosaic.crops_of(context.config, context.dataset.spec)
    root, target = context.dataset.train.root, context.run.selected / context.dataset.classes.folders[class_index]
    paths, numbers, scores = (chosen[name].tolist() for name in ("img_path", CROP, "score"))

    def cut(place: int) -> tuple[Pixels, Row]:
        path, number = paths[place], numbers[place]
        try:
            image = decode(root / path)
        except BadImageError as error:
            raise UserError(
                f"a ranked training image can no longer be read: {error}",
                where=str(root / path),
                remedy="restore the file, or start a new run",
            ) from None
        window = crops.window(path, number, image.height, image.width)
        return crops.cut(image, path, number), (path, scores[place], number, *window)

    rows: list[Row] = []
    shutil.rmtree(target, ignore_errors=True)
    with ThreadPoolExecutor(max(1, context.loader_config.workers)) as pool, writing_folder(target) as folder:
        for number in range(ipc):
            cells = list(pool.map(cut, mosaic.ranks(number, ipc, side)))
            Image.fromarray(mosaic.compose([pixels for pixels, _ in cells], side)).save(folder / _name(number))
            rows += [(class_index, number, *divmod(cell, side), *row) for cell, (_, row) in enumerate(cells)]
    return rows


def _mosaic_rows(tiles: Sequence[Row], class_index: int, folder: str) -> list[Row]:
    """The rows of selected.csv: with the paths of all images that a mosaic has crops of, and their mean score."""
    table = pd.DataFrame(tiles, columns=list(mosaic.COLUMNS))
    mosaics = (of for _, of in table.groupby("number"))
    return [
        (class_index, folder, number, SEPARATOR.join(of["img_path"]), of["score"].mean(), f"{folder}/{_name(number)}")
        for number, of in enumerate(mosaics)
    ]


def _name(number: int) -> str:
    return f"{number:05d}.png"
