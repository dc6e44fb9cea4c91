"""A description of the run: one or two sentences per stage, from the configuration alone."""

from delt_hpc.config.schema import Config, Evaluate, Recover
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.report.content import Step

_ORDER = {
    "medium": "those around the median of the ranking",
    "top": "the easiest, for which the teacher is most confident",
    "min": "the hardest, for which the teacher is least confident",
    "random": "drawn at random",
}

_NOT_RECOVERED = {
    "real": "No pixel was optimised (0 iterations): the distilled images are the selected real images.",
    "mosaics": "No pixel was optimised (0 iterations): the distilled images are the mosaics.",
}


def steps(config: Config, spec: DatasetSpec) -> tuple[Step, ...]:
    """The stages of the run in order."""
    texts = {
        "squeeze": _squeeze(config),
        "rank": _rank(config, spec),
        "select": _select(config, spec),
        "recover": _recover(config, spec) if config.recover.iterations else _NOT_RECOVERED[config.kind_of_images],
        "aggregate": "The images of all batches, one folder per class; every file was checked and has a checksum.",
        "evaluate": _evaluate(config),
    }
    return tuple(Step(stage, texts[stage]) for stage in config.stages if stage in texts)


def _squeeze(config: Config) -> str:
    teacher, squeeze = config.teacher, config.squeeze
    if teacher.source == "torchvision":
        return f"The teacher is torchvision's {teacher.model} with the weights {teacher.weights}, frozen."
    if teacher.source == "checkpoint":
        return f"The teacher is a frozen {teacher.model} from a checkpoint."
    return (
        f"The teacher, a {teacher.model}, was trained on the real training images: {squeeze.epochs} epochs of SGD with"
        f" Nesterov momentum, batches of {squeeze.batch_size}, peak learning rate {squeeze.lr:g}; then frozen."
    )


def _rank(config: Config, spec: DatasetSpec) -> str:
    if config.rank.csv:
        return "An existing ranking of the real training images was used."
    if config.rank.candidates == "crops":
        rank, side = config.rank, spec.size // config.rank.tiles_at(spec.size)
        smallest, largest = rank.crop_scale
        return (
            f"Of each class {rank.pool} real training images (or all) were drawn at random, and of each image"
            f" {rank.crops} square crops of {smallest:g} to {largest:g} of its area. A crop, resized to {side} pixels"
            f" and padded with zeros to {spec.size}, was scored by the teacher's probability of the true class. Each"
            " image is ranked by its best crop."
        )
    return (
        "Every real training image was scored by the teacher's probability of its true class"
        f" (resized to {spec.resize}, centre crop of {spec.size} pixels)."
    )


def _select(config: Config, spec: DatasetSpec) -> str:
    ipc, order = config.select.ipc, _ORDER[config.select.strategy]
    if config.rank.candidates == "images":
        return f"Selected {ipc} images of each class to start from: {order}."
    tiles = config.rank.tiles_at(spec.size)
    return (
        f"Composed {ipc} mosaics of {tiles} x {tiles} crops for each class to start from; they have these of the ranked"
        f" crops: {order}."
    )


def _recover(config: Config, spec: DatasetSpec) -> str:
    recover = config.recover
    start = "the selected images" if recover.init == "selected" else "Gaussian noise"
    rounds = "in one round"
    if recover.rounds > 1:
        rounds = (
            f"in {recover.rounds} rounds of {recover.round_length}, each adding images, so that early ones are"
            " optimised longest"
        )
    crops = "of at least" if recover.crop_schedule == "constant" else "from whole images down to"
    return (
        f"Starting from {start}, pixels were optimised for {recover.iterations} iterations {rounds}: cross-entropy plus"
        f" {recover.r_bn:g} times the distance to the teacher's BatchNorm statistics, on random crops"
        f" {crops} {recover.min_crop:g} of the area, Adam with learning rate {recover.lr:g}.{_blocks(recover, spec)}"
    )


def _blocks(recover: Recover, spec: DatasetSpec) -> str:
    if recover.blocks == 1:
        return ""
    merged = (
        f" Between two blocks, {recover.merge:g} of an image was kept and {1 - recover.merge:g} of its start added."
        if recover.merge < 1
        else ""
    )
    sizes = ", ".join(map(str, recover.sizes_at(spec.size)))
    return (
        f" The run has {recover.blocks} blocks, at {sizes} pixels:"
        f" {recover.pixel_share(spec.size):.1%} of the pixels of a run at {spec.size} pixels.{merged}"
    )


def _stored(evaluate: Evaluate) -> str:
    format_ = evaluate.label_format
    kept = f"the {evaluate.label_top_k} largest logits of each image" if format_ == "top_k" else f"in {format_}"
    stored = f" Soft labels were stored ({kept})." if evaluate.labels == "stored" else ""
    return stored + (
        f" The random draws of {evaluate.epochs_kept} epochs were repeated until the end."
        if evaluate.epochs_kept
        else ""
    )


def _evaluate(config: Config) -> str:
    evaluate = config.evaluate
    mix = {"cutmix": "CutMix", "mixup": "mixup", "none": "no mixing"}[evaluate.mix]
    strips = evaluate.shuffle_patches
    shuffled = f", {strips} x {strips} shuffled patches" if strips > 1 else ""
    batch = " (normalised by the statistics of the batch)" if evaluate.teacher_statistics == "batch" else ""
    loss = (
        f"at temperature {evaluate.temperature_used:g}"
        if evaluate.soft_loss == "kl"
        else f"(loss: squared error of the logits + {evaluate.ce_weight:g} x cross-entropy with the class labels)"
    )
    times = "once" if len(evaluate.seeds) == 1 else f"for {len(evaluate.seeds)} seeds each"
    return (
        f"Students were trained from scratch for {evaluate.epochs} epochs with AdamW, learning rate {evaluate.lr:g},"
        f" batches of {evaluate.batch_size}, {mix}{' and RandAugment' if evaluate.randaugment else ''}{shuffled}; soft"
        f" labels are the teacher's outputs{batch} for each augmented image {loss}.{_stored(evaluate)}"
        f" They were tested on the real validation images, {times}."
    )
