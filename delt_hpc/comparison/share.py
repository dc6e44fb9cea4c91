"""Work that several runs of a comparison have in common is done once; the others get links to its files.

A stage is shared where the stamp is the same: the teacher and the ranking between methods, the whole distilled set
between protocols. The links come with their markers and checksums, so a stage checks them as if it had made them.
Finished files are only ever replaced, never changed, so a link is as good as a copy; there are copies where the file
system has no links.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from delt_hpc.config.schema import Config, Stage
from delt_hpc.run import timing
from delt_hpc.run.folder import (
    CHECKPOINT,
    RESOLVED,
    STAMP,
    RunFolder,
    is_done,
    is_temporary,
    make_folder,
    read_json,
    stage_identity,
    writing,
    writing_folder,
)

_STAGES: tuple[Stage, ...] = ("squeeze", "rank", "select", "recover", "aggregate")


def share_data_set(run: RunFolder, config: Config, others: Iterable[tuple[RunFolder, Config]]) -> None:
    """Give the run the record of the data set that another run with the same `data` section has made."""
    if run.dataset.exists():
        return
    for other, its_config in others:
        if other.dataset.exists() and (its_config.data, its_config.seed) == (config.data, config.seed):
            for path in (other.classes, other.index("train"), other.index("val"), other.dataset):  # the record last
                _link(path, run.root / path.relative_to(other.root))
            return


def share_stages(run: RunFolder, config: Config, stages: Sequence[Stage], others: Sequence[RunFolder]) -> list[str]:
    """Link the finished results of other runs for those of the stages that would make the same.

    Args:
        run: with its data set prepared.

    Returns:
        A sentence for each stage that was shared.
    """
    said = []
    for stage in (stage for stage in _STAGES if stage in stages):
        source = next((other for other in others if other.root != run.root and _same(run, config, stage, other)), None)
        if source is None or _folder(run, stage).exists():
            continue
        _link_stage(run, stage, source)
        said.append(f"{stage}: as in {source.root}")
    return said


def _folder(run: RunFolder, stage: Stage) -> Path:
    folders = {"squeeze": run.teacher, "rank": run.rank, "select": run.selected, "recover": run.recover}
    return folders.get(stage, run.distilled)


def _same(run: RunFolder, config: Config, stage: Stage, other: RunFolder) -> bool:
    """Whether the other run has finished the stage with the same configuration and the same images."""
    # Recovery has no marker of its own: it is finished where the distilled set is.
    done = _folder(other, "aggregate" if stage == "recover" else stage)
    stamp = _folder(other, stage) / STAMP
    if not is_done(done) or not stamp.exists():
        return False
    made_by = read_json(stamp)
    made_by.pop(RESOLVED, None)
    return bool(made_by == stage_identity(config, stage, run))


def _link_stage(run: RunFolder, stage: Stage, source: RunFolder) -> None:
    timing.copy(stage, source, run)
    if stage == "rank":
        _link(source.ranking, run.ranking)  # before the marker in rank/, which lists it
    folder = _folder(source, stage)
    with writing_folder(_folder(run, stage)) as target:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != CHECKPOINT and not is_temporary(path):
                _link(path, target / path.relative_to(folder))


def _link(source: Path, target: Path) -> None:
    make_folder(target.parent)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with writing(target) as copy, source.open("rb") as file:
            shutil.copyfileobj(file, copy)
