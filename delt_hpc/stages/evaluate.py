"""Evaluate: students trained from scratch on distilled and on real images, tested on the real validation set."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from delt_hpc.config.schema import Evaluate
from delt_hpc.context import Context, StageFolder
from delt_hpc.data.epochs import TrainingBatch
from delt_hpc.data.index import Index
from delt_hpc.data.loader import LoaderConfig, TrainingSet, ValidationSet
from delt_hpc.data.transforms import Augmentation
from delt_hpc.distilled import manifest
from delt_hpc.errors import UserError, some
from delt_hpc.keyed_random import Key, seeded
from delt_hpc.models import teacher
from delt_hpc.models.registry import build
from delt_hpc.ranking import selection
from delt_hpc.run import checksums, late
from delt_hpc.run.folder import write_json
from delt_hpc.run.lock import locked
from delt_hpc.run.timing import device_name
from delt_hpc.run.tracker import UnitTracker
from delt_hpc.training import confusion, soft_labels
from delt_hpc.training.compiled import compile_network, resolve_compile
from delt_hpc.training.loop import Outcome, Training, write_history
from delt_hpc.training.precision import autocast, name_of, training_dtype
from delt_hpc.training.soft_labels import SoftLabels
from delt_hpc.training.trial import Trial, trials

RESULT, HISTORY = "result.json", "history.csv"
_OF_TRAIN = ("random", "full")  # images of trials that are read from train/


def evaluate(context: Context, only: Trial | None = None) -> None:
    """Train and test every student x seed x arm that is not finished yet, or only one of them."""
    config = context.config.evaluate
    chosen = [only] if only else trials(config)
    folders = {trial: StageFolder(context, "evaluate", trial.folder(context.run)) for trial in chosen}
    unfinished = [trial for trial, folder in folders.items() if not folder.done()]
    if not unfinished:
        return
    _require_inputs(context, unfinished)
    network = teacher.load(context.run, context.dataset, context.device).to(memory_format=torch.channels_last)
    if config.teacher_statistics == "batch":
        use_batch_statistics(network)
    loader_config = _loader_config(context)
    val = context.validation_set()
    resolved = {
        "evaluate.precision": name_of(training_dtype(config.precision, context.device)),
        "machine.loader": loader_config.backend(training=True),
    }
    others = [path for path in sorted(context.run.evaluate.glob("*")) if path.is_dir()]
    for number, trial in enumerate(unfinished, start=1):
        folder = folders[trial]
        folder.start()
        folder.stamp_resolved(resolved, others)
        tracker = context.trackers.start("evaluate", trial.id)
        job = _training(context, trial, network, val, folder.usable_checkpoint(), tracker)
        if trial.soft and config.labels == "stored":
            labels = _stored_labels(context, trial, job, network, resolved)
            job = replace(job, loss=soft_loss(nn.Identity(), config), stored_logits=labels.logits)
        title = f"evaluate {number}/{len(unfinished)}: {trial.id}"
        with closing(tracker), context.reporter.bar(title, config.epochs * job.train.steps()) as bar:
            outcome = job.run(bar)
        split = "train" if trial.images in _OF_TRAIN else trial.images
        folder.list_skipped({split: job.train.bad.files, "val": val.bad.files})
        bad = job.train.bad.files
        if bad:
            context.reporter.say(f"evaluate: {trial.id}: {len(bad)} of {len(job.train.index)} images are unreadable")
        counts = confusion.measure(job.model, val, config.precision, len(context.dataset.classes))
        confusion.write(folder.path / confusion.TABLE, counts)
        _finish(context, trial, folder, job.model, outcome, images=len(job.train.index), skipped=len(bad))


def _require_inputs(context: Context, unfinished: list[Trial]) -> None:
    run = context.run
    for images, folder, stage in (("distilled", run.distilled, "aggregate"), ("selected", run.selected, "select")):
        if any(trial.images == images for trial in unfinished) and not late.all_done([folder]):
            raise UserError("is missing or not finished", where=str(folder), remedy=f"run the stage `{stage}` first")
    if any(trial.images == "distilled" for trial in unfinished):
        manifest.require(run.distilled)
    if any(trial.images == "selected" for trial in unfinished):
        checksums.require(run.selected, "select")


def _finish(
    context: Context,
    trial: Trial,
    folder: StageFolder,
    student: nn.Module,
    outcome: Outcome,
    *,
    images: int,
    skipped: int,
) -> None:
    """Write the result; `images` of the trial, of which `skipped` were unreadable."""
    final, best = outcome.validated[-1], outcome.best
    count = images - skipped
    write_history(folder.path / HISTORY, outcome.history)
    result = {
        "student": trial.student,
        "seed": trial.seed,
        "arm": trial.arm,
        "images": trial.images,
        "labels": "soft" if trial.soft else "hard",
        "final": final.val_accuracy,
        "best": best.val_accuracy,
        "best_epoch": best.epoch,
        "ema": final.ema_accuracy,
        "epochs": len(outcome.history),
        "train_images": count,
        "parameters": sum(p.numel() for p in student.parameters()),
        "seconds": outcome.seconds,
        "device": device_name(context.device),
        **_loader_config(context).facts(training=True),
    }
    write_json(folder.path / RESULT, result)
    passes = count * len(outcome.history)
    folder.record(trial.id, count, passes, seconds=outcome.seconds, data_wait_s=outcome.data_wait_s)
    folder.finish()
    context.reporter.say(f"evaluate: {trial.id}: {final.val_accuracy:.2f} % top-1")


def _training(
    context: Context, trial: Trial, network: nn.Module, val: ValidationSet, checkpoint: Path, tracker: UnitTracker
) -> Training:
    config, dataset, seed = context.config.evaluate, context.dataset, context.config.seed
    # All arms use the same random draws, so that they differ only in images and labels.
    with seeded(seed, "evaluate", "init", trial.student, trial.seed):
        student = build(trial.student, len(dataset.classes), dataset.spec.size).to(context.device)
    index = _index(context, trial)
    labelling = [network] if trial.soft and config.labels == "online" else []
    compiled = resolve_compile(
        config.compile, student, labelling, len(index) * config.epochs, dataset.spec.size, context.device,
        lambda line: context.reporter.say(f"evaluate: {trial.id}: {line}"),
    )  # fmt: skip
    smallest, largest = config.crop_scale
    return Training(
        model=student,
        optimizer=optimizer(student, config),
        epochs=config.epochs,
        lr=learning_rate(config),
        loss=soft_loss(compile_network(network) if compiled else network, config) if trial.soft else hard_loss,
        train=TrainingSet(
            index=index,
            positions=np.arange(len(index)),
            spec=replace(dataset.spec, mirror=dataset.spec.mirror and config.mirror),
            augmentation=Augmentation((smallest, largest), config.randaugment, config.shuffle_patches),
            batch_size=config.batch_size,
            key=(seed, "evaluate", trial.seed),
            loader_config=_loader_config(context),
            epochs_kept=config.epochs_kept,
        ),
        val=val,
        precision=config.precision,
        validate_every=config.validate_every,
        checkpoint=checkpoint,
        lr_option="evaluate.lr",
        mix=mixing(config.mix, len(dataset.classes), seed, "evaluate", "mix", trial.seed),
        ema_decay=config.ema_decay,
        compile=compiled,
        tracker=tracker,
    )


def _stored_labels(
    context: Context, trial: Trial, job: Training, network: nn.Module, resolved: dict[str, str]
) -> SoftLabels:
    """The soft labels of the trial's images, which all students share; made here unless they are there."""
    config, reporter = context.config.evaluate, context.reporter
    name = f"{trial.images}-{trial.seed}"
    epochs = config.epochs_kept or config.epochs
    path = context.run.labels / name
    labels = SoftLabels(path, job.train, epochs, soft_labels.encoding(config, len(context.dataset.classes)))

    def waits() -> None:
        reporter.say(f"evaluate: waiting for another process that writes the soft labels of {name}")

    def label(batch: TrainingBatch) -> Tensor:
        return teacher_logits(network, job.inputs(batch)[0], config)

    with locked(context.run.locks / f"labels-{name}", 0, 1, waits):
        folder = StageFolder(context, "evaluate", path)
        if late.seen(path) and folder.done():
            return labels
        folder.start()
        folder.stamp_resolved(resolved)
        reporter.say(f"evaluate: the soft labels of {name} take {soft_labels.written(labels.size)} in {path}")
        with reporter.bar(f"evaluate: soft labels of {name}", epochs * job.train.steps()) as bar:
            labels.write(label, bar)
        count = len(job.train.index)
        folder.record(path.name, count, count * epochs)
        folder.finish()
    return labels


def _loader_config(context: Context) -> LoaderConfig:
    """How training images are read: patches are shuffled by PIL alone."""
    shuffled = context.config.evaluate.shuffle_patches > 1
    return replace(context.loader_config, loader="torchvision") if shuffled else context.loader_config


def _index(context: Context, trial: Trial) -> Index:
    """The training images of the student: all real ones, or `ipc` per class.

    Raises:
        UserError: a class has another number of images.
    """
    if trial.images == "full":
        return context.dataset.train
    index = _images(context, trial)
    counts, ipc = index.counts(len(context.dataset.classes)), context.config.select.ipc
    wrong = [
        f"{folder} has {count}"
        for folder, count in zip(context.dataset.classes.folders, counts.tolist(), strict=True)
        if count != ipc
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(counts)} classes do not have {ipc} images: {some(wrong)}",
            where=str(index.root),
            remedy="run the stage that makes this folder again",
        )
    return index


def _images(context: Context, trial: Trial) -> Index:
    if trial.images == "distilled":
        return manifest.index(context.run.distilled)
    if trial.images == "selected":
        listed = selection.read(context.run.selected)
        files = tuple(checksums.located(context.run.selected, file) for file in listed["file"])
        return Index(context.run.selected, files, listed["class_index"].to_numpy("int64", copy=True))
    train = context.dataset.train
    chosen: list[int] = []
    for class_index in range(len(context.dataset.classes)):
        positions = train.positions(class_index, class_index)
        paths = [train.paths[p] for p in positions.tolist()]
        key = (context.config.seed, "random", trial.seed, class_index)
        chosen += positions[selection.choose("random", paths, context.config.select.ipc, *key)].tolist()
    return Index(train.root, tuple(train.paths[p] for p in chosen), train.labels[chosen])


def optimizer(student: nn.Module, config: Evaluate) -> torch.optim.Optimizer:
    return torch.optim.AdamW(student.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: Evaluate) -> Callable[[float], float]:
    """lr (1 + cos(pi t / E)) / 2 at epoch t; with 2E instead of E for `cosine_half`, which so ends at half the rate."""
    span = config.epochs * (2 if config.lr_schedule == "cosine_half" else 1)
    return lambda epoch: config.lr * (1 + math.cos(math.pi * epoch / span)) / 2


def soft_loss(network: Callable[[Tensor], Tensor], config: Evaluate) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss against the teacher's logits t for the same augmented images; s are the student's.

    `kl`: KL(softmax(t / T) || softmax(s / T)), mean over the images. `mse_ce`: the mean of (s - t)^2 plus `ce_weight`
    times the cross-entropy with the labels (EDC, arXiv 2404.13733).
    """
    temperature = config.temperature_used

    def loss(output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        target = teacher_logits(network, images, config)
        if config.soft_loss == "mse_ce":
            student = output.float()
            return F.mse_loss(student, target.float()) + config.ce_weight * hard_loss(student, images, labels)
        return F.kl_div(
            F.log_softmax(output.float() / temperature, 1),
            F.log_softmax(target.float() / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )

    return loss


def teacher_logits(network: Callable[[Tensor], Tensor], images: Tensor, config: Evaluate) -> Tensor:
    """The teacher's logits [B, classes] of images [B, 3, S, S], without gradients, in the evaluation's precision."""
    with torch.no_grad(), autocast(images.device, training_dtype(config.precision, images.device)):
        return network(images)


def use_batch_statistics(network: nn.Module) -> None:
    """Let the BatchNorm layers of a frozen network normalise by the batch; their running statistics stay unchanged."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.track_running_stats = False


def hard_loss(output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; labels are class indices [B], or mixed labels [B, classes]."""
    return F.cross_entropy(output, labels)


def mixing(kind: str, classes: int, *key: Key) -> Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]] | None:
    """CutMix or MixUp of a batch (torchvision's, Beta(1, 1)); random draws depend on (key, epoch, step) only."""
    if kind == "none":
        return None
    transform = {"cutmix": v2.CutMix, "mixup": v2.MixUp}[kind](num_classes=classes)

    def mix(images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        with seeded(*key, epoch, step):
            mixed: tuple[Tensor, Tensor] = transform(images, labels)
        return mixed

    return mix
