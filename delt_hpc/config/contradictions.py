"""Options that are valid alone but contradict each other."""

import math
from collections.abc import Iterator, Sequence

from delt_hpc.config.network_name import in_file_names
from delt_hpc.config.schema import Config, Data, Recover, Teacher
from delt_hpc.errors import some

MAX_ROUNDS = 1000


def contradictions(config: Config) -> list[tuple[str, str]]:
    """(key, problem with its remedy) for values that are valid alone but not in combination."""
    return [
        *_recovery(config.recover),
        *_ranking(config),
        *_teacher(config.teacher),
        *_training(config),
        *_labels(config),
        *_data(config.data),
        *_lists(config),
    ]


def _recovery(recover: Recover) -> Iterator[tuple[str, str]]:
    total, length = recover.iterations, recover.round_length
    if not total and recover.init == "noise":
        yield "recover.iterations", "0 iterations leave the noise as it is; set recover.init: selected"
    if total and total % length:
        small = [d for d in range(1, math.isqrt(total) + 1) if total % d == 0]
        divisors = {*small, *(total // d for d in small)}
        near = sorted(sorted(divisors, key=lambda d: abs(d - length))[:4])
        yield (
            "recover.round_iterations",
            f"{length} does not divide recover.iterations = {total}; use a divisor such as {some(near)}",
        )
    elif recover.rounds > MAX_ROUNDS:
        yield "recover.round_iterations", f"{length} gives {recover.rounds} rounds; at most {MAX_ROUNDS} are possible"
    elif recover.batching == "mixed" and recover.rounds > 1:
        yield "recover.batching", "`mixed` batches have a single round; set recover.round_iterations: null"
    yield from _blocks(recover)
    if recover.engine == "reference":
        if recover.deterministic:
            yield "recover.deterministic", "requires recover.engine: packed"
        if recover.precision not in ("auto", "float32"):
            yield (
                "recover.precision",
                f"{recover.precision}: the reference engine computes in float32; use float32 or auto",
            )


def _blocks(recover: Recover) -> Iterator[tuple[str, str]]:
    blocks, sizes = recover.blocks, recover.block_sizes
    if sizes and len(sizes) != blocks:
        yield "recover.block_sizes", f"{len(sizes)} sizes for {blocks} blocks; set recover.blocks: {len(sizes)}"
    if blocks == 1 and recover.merge < 1:
        yield "recover.merge", "images are merged with their start between blocks; set recover.blocks above 1"
    if blocks == 1 or not recover.iterations:
        return
    if recover.iterations % blocks:
        yield "recover.blocks", f"{blocks} does not divide recover.iterations = {recover.iterations}"
    if recover.rounds > 1:
        yield "recover.blocks", f"{blocks} blocks require a single round; set recover.round_iterations: null"
    if recover.merge < 1 and recover.init == "noise":
        yield "recover.merge", "merging with the start would add noise; set recover.init: selected, or recover.merge: 1"
    if recover.adam_moments == "run" and sizes and len(set(sizes)) > 1:
        yield "recover.adam_moments", "run: moments have the size of the images; use per_block, or the same block_sizes"


def _ranking(config: Config) -> Iterator[tuple[str, str]]:
    rank, ipc = config.rank, config.select.ipc
    if rank.candidates == "images":
        return
    if rank.csv:
        yield "rank.csv", "is a ranking of whole images; remove it, or set rank.candidates: images"
    if rank.tiles and rank.pool < rank.tiles**2 * ipc:
        yield "rank.pool", f"{rank.pool} is less than rank.tiles^2 * select.ipc = {rank.tiles**2 * ipc} crops"
    if rank.tiles and config.data.size and config.data.size % rank.tiles:
        yield "rank.tiles", f"{rank.tiles} does not divide data.size = {config.data.size}; use 1"


def _teacher(teacher: Teacher) -> Iterator[tuple[str, str]]:
    for key, given, source, example in (
        ("weights", teacher.weights, "torchvision", "e.g. IMAGENET1K_V1"),
        ("checkpoint", teacher.checkpoint, "checkpoint", "the path of a weights file"),
    ):
        if given and teacher.source != source:
            yield (
                f"teacher.{key}",
                f"is only used with teacher.source: {source}, which is {teacher.source}; remove one of the two",
            )
        if not given and teacher.source == source:
            yield f"teacher.{key}", f"is required with teacher.source: {source}; give {example}"


def _training(config: Config) -> Iterator[tuple[str, str]]:
    for key, scale in (
        ("squeeze", config.squeeze.crop_scale),
        ("rank", config.rank.crop_scale),
        ("evaluate", config.evaluate.crop_scale),
    ):
        if scale[0] > scale[1]:
            yield f"{key}.crop_scale", f"{scale}: expected the smallest area first, then the largest"
    warm, epochs = config.squeeze.warmup_epochs, config.squeeze.epochs
    if warm >= epochs and config.teacher.source == "train":
        yield "squeeze.warmup_epochs", f"{warm} must be less than squeeze.epochs = {epochs}"


def _labels(config: Config) -> Iterator[tuple[str, str]]:
    evaluate = config.evaluate
    if evaluate.epochs_kept and evaluate.epochs_kept > evaluate.epochs:
        yield "evaluate.epochs_kept", f"{evaluate.epochs_kept} is more than evaluate.epochs = {evaluate.epochs}"
    if evaluate.labels == "online":
        return
    if not any(arm.endswith("soft") for arm in evaluate.arms):
        yield "evaluate.labels", "stored: no arm has soft labels; add one to evaluate.arms, e.g. distilled-soft"
    if config.data.on_bad == "skip":
        yield "evaluate.labels", "stored: every image has a label, so none can be skipped; set data.on_bad: raise"


def _data(data: Data) -> Iterator[tuple[str, str]]:
    for key, values in (("mean", data.mean), ("std", data.std)):
        if isinstance(values, list) and (len(values) != 3 or not all(0 <= v <= 1 for v in values)):
            yield (
                f"data.{key}",
                f"{values}: expected three numbers in 0..1 for red, green, blue (pixel values divided by 255)",
            )
    if isinstance(data.std, list) and 0 in data.std:
        yield "data.std", f"{data.std}: standard deviations must be above 0"
    if (data.mean == "measure") != (data.std == "measure"):
        yield "data.mean", "`measure` must be set for both data.mean and data.std, or for neither"
    paths = [name for name in data.classes or () if name in ("", ".", "..") or "/" in name]
    if paths:
        yield (
            "data.classes",
            f"{some([repr(name) for name in paths])}: expected names of folders directly below data.train",
        )
    if data.size and data.resize and data.resize < data.size:
        yield "data.resize", f"{data.resize} must be at least data.size = {data.size}, so that the centre crop fits"


def _lists(config: Config) -> Iterator[tuple[str, str]]:
    evaluate = config.evaluate
    lists: dict[str, Sequence[object]] = {
        "evaluate.students": evaluate.students,
        "evaluate.seeds": evaluate.seeds,
        "evaluate.arms": evaluate.arms,
        "data.classes": config.data.classes or [],
    }
    for key, items in lists.items():
        twice = sorted({str(item) for item in items if list(items).count(item) > 1})
        if twice:
            yield key, f"contains {some(twice)} more than once"
    folders = [in_file_names(student) for student in set(evaluate.students)]
    shared = sorted({folder for folder in folders if folders.count(folder) > 1})
    if shared:
        yield "evaluate.students", f"several students would share the folders evaluate/{some(shared)}-*; rename one"
