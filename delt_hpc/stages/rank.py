"""Rank: the teacher's true-class probability of every training image, or of random crops (rank.candidates).

There is one file per class, and then ranking.csv.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from delt_hpc.config.class_range import ClassRange
from delt_hpc.context import Context, StageFolder
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.loader import crop_batches, evaluation_batches
from delt_hpc.errors import some
from delt_hpc.models import teacher
from delt_hpc.models.folding import fold_batch_norms
from delt_hpc.ranking.mosaic import best_crops, crops_of, pool
from delt_hpc.ranking.score import scores
from delt_hpc.ranking.table import rank_class, read_given, read_ranking, write_ranking
from delt_hpc.run import checksums, stop
from delt_hpc.run.folder import DONE, is_done, set_aside, stamp, write_text
from delt_hpc.training.precision import name_of, scoring_dtype

READ_BY = "read_by.json"
CHECKSUM = ".b2"  # suffix of the file beside a class's ranking that holds its checksum


def rank(context: Context, classes: ClassRange | None = None) -> None:
    """Rank the classes of the range, and write ranking.csv once all classes are ranked.

    Raises:
        UserError: other classes of this run were read by another image decoder or version, which changes scores.
    """
    run, config = context.run, context.config
    classes = context.class_range(classes)
    stage = StageFolder(context, "rank", run.rank)
    if is_done(run.rank) and not _reopen(context, stage):
        return
    stage.start()
    if config.rank.csv:
        write_ranking(run.ranking, read_given(config.rank.csv, context.dataset.train, context.dataset.classes))
        stage.finish({"given": str(config.rank.csv)}, [run.ranking])
        return
    missing = [c for c in classes.indices if not _is_ranked(context, c)]
    if missing:
        stamp(run.rank, context.loader_config.facts(training=False), READ_BY)
        precision = name_of(scoring_dtype(config.rank.precision, context.device))
        loader = context.loader_config.backend(training=False)
        stage.stamp_resolved({"rank.precision": precision, "machine.loader": loader})
        _score(context, stage, missing)
    if all(_is_ranked(context, c) for c in range(len(context.dataset.classes))):
        parts = [read_ranking(_path(context, c)) for c in range(len(context.dataset.classes))]
        write_ranking(run.ranking, pd.concat(parts, ignore_index=True))
        stage.finish(beside=[run.ranking])


def _reopen(context: Context, stage: StageFolder) -> bool:
    """Whether files of the finished ranking were lost or changed; if so, it is no longer finished.

    Damaged rankings of classes and a damaged ranking.csv are made again; other damage sets the whole folder aside.
    """
    run = context.run
    faults = checksums.faults(run.rank)
    if not faults:
        return False
    parts = {_path(context, c).name for c in range(len(context.dataset.classes))} | {f"../{run.ranking.name}"}
    if all(fault.partition(": ")[0] in parts for fault in faults):
        context.reporter.say(f"rank: damaged files are made again: {some(faults)}")
        (run.rank / DONE).unlink()
    else:
        stage.set_aside(faults)
    return True


def _path(context: Context, class_index: int) -> Path:
    return context.run.class_ranking(class_index)


def _is_ranked(context: Context, class_index: int) -> bool:
    """Whether the class's ranking is there and has its checksum; a damaged one is set aside."""
    path = _path(context, class_index)
    try:
        if checksums.of_file(path) == path.with_suffix(CHECKSUM).read_text(encoding="utf-8").strip():
            return True
    except FileNotFoundError:
        return False  # without a checksum: a process was killed before it had finished the class
    except UnicodeDecodeError:
        pass
    context.reporter.say(f"rank: {path} is damaged, so it is made again; it is now {set_aside(context.run, path)}")
    return False


def _score(context: Context, stage: StageFolder, missing: list[int]) -> None:
    config, index, spec, loader_config = (
        context.config.rank,
        context.dataset.train,
        context.dataset.spec,
        context.loader_config,
    )
    network = fold_batch_norms(teacher.load(context.run, context.dataset, context.device))
    network = network.to(memory_format=torch.channels_last)
    positions = np.concatenate([_candidates(context, c) for c in missing])
    results, crop_numbers = np.full(len(index), np.nan), np.zeros(len(index), np.int64)
    crops = crops_of(context.config, spec) if config.candidates == "crops" else None
    per_image = crops.number if crops else 1
    bad, finished = BadFiles(loader_config.on_bad), 0
    began = requested = time.perf_counter()
    waited = 0.0
    with context.reporter.bar("rank", len(positions)) as bar:
        # The last bits of a score depend on the batch, so a batch holds one class, whatever classes a task has.
        batches = (
            crop_batches(index, positions, spec, max(1, config.batch_size // per_image), crops, loader_config, bad)
            if crops
            else evaluation_batches(index, positions, spec, config.batch_size, loader_config, bad, by_class=True)
        )
        for images, places in batches:
            waited += time.perf_counter() - requested
            labels = index.labels[places]
            if crops:
                results[places], crop_numbers[places] = best_crops(network, images, labels, spec.size, config.precision)
            else:
                results[places] = scores(network, images, labels, config.precision)
            # Images come in class order: all classes before that of the batch's last image are complete.
            while missing[finished] < index.labels[places[-1]]:
                _finish(context, stage, missing[finished], results, crop_numbers, bad)
                finished += 1
            bar.advance(len(places))
            stop.check()
            requested = time.perf_counter()
    for class_index in missing[finished:]:
        _finish(context, stage, class_index, results, crop_numbers, bad)
    seconds = time.perf_counter() - began
    unit = str(ClassRange(missing[0], missing[-1]))
    stage.record(unit, len(positions), len(positions) * per_image, seconds=seconds, data_wait_s=waited)
    if bad.files:
        context.reporter.say(f"rank: {len(bad.files)} unreadable image(s) skipped, listed in {context.run.rank}")


def _candidates(context: Context, class_index: int) -> np.ndarray:
    """Positions of the images of a class that are read: all, or those that crops are taken of."""
    rank, index = context.config.rank, context.dataset.train
    if rank.candidates == "crops":
        return pool(index, class_index, rank.pool, context.config.seed)
    return index.positions(class_index, class_index)


def _finish(
    context: Context,
    stage: StageFolder,
    class_index: int,
    results: np.ndarray,
    crop_numbers: np.ndarray,
    bad: BadFiles,
) -> None:
    """Write a class's files; the checksum of the ranking last, because it marks the class as finished."""
    index, folder = context.dataset.train, context.dataset.classes.folders[class_index]
    skipped = [file for file in bad.files if index.labels[file.position] == class_index]
    stage.list_skipped({"train": skipped}, prefix=f"{class_index:05d}.")
    positions = _candidates(context, class_index)
    ranked = positions[~np.isin(positions, [file.position for file in skipped])]
    path = _path(context, class_index)
    numbers = crop_numbers[ranked] if context.config.rank.candidates == "crops" else None
    write_ranking(path, rank_class(index, ranked, results[ranked], folder, class_index, numbers))
    write_text(path.with_suffix(CHECKSUM), checksums.of_file(path) + "\n")
