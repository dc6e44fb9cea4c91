"""Squeeze: a frozen teacher with BatchNorm in teacher/; trained here, from torchvision or from a checkpoint."""

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delt_hpc.config.schema import Squeeze
from delt_hpc.context import Context, StageFolder
from delt_hpc.data.loader import TrainingSet
from delt_hpc.data.transforms import Augmentation
from delt_hpc.keyed_random import seeded
from delt_hpc.models import teacher, torchvision_files, weights
from delt_hpc.models.registry import build, require_batch_norm
from delt_hpc.run.folder import write_json
from delt_hpc.run.timing import device_name
from delt_hpc.training.compiled import resolve_compile
from delt_hpc.training.loop import Outcome, Training, accuracies, write_history
from delt_hpc.training.precision import name_of, training_dtype


def squeeze(context: Context) -> None:
    """Train or load the teacher; write its weights, card and training history to teacher/."""
    run, config = context.run, context.config
    folder = StageFolder(context, "squeeze", run.teacher)
    if folder.done():
        return
    folder.start()
    dataset, name = context.dataset, config.teacher.model
    with seeded(config.seed, "squeeze", "init"):
        network = build(name, len(dataset.classes), dataset.spec.size)
    require_batch_norm(network, name, "teacher.model")
    card: dict[str, Any] = {"model": name, "source": config.teacher.source, "epochs": 0, "seconds": 0.0}
    if config.teacher.source == "train":
        precision = name_of(training_dtype(config.squeeze.precision, context.device))
        loader = context.loader_config.backend(training=True)
        folder.stamp_resolved({"squeeze.precision": precision, "machine.loader": loader})
        outcome = _train(context, network.to(context.device), folder)
        card |= {"weights": "trained here", "epochs": len(outcome.history), "seconds": outcome.seconds}
        card["val_accuracy"] = outcome.final
        write_history(run.teacher / teacher.HISTORY, outcome.history)
        passes = len(dataset.train) * len(outcome.history)
        folder.record(name, len(dataset.train), passes, seconds=outcome.seconds, data_wait_s=outcome.data_wait_s)
    else:
        state, where = _pretrained(context)
        weights.fit(network, state, where)
        # The name alone: the card goes into the distilled set, which keeps no paths of this machine.
        card["weights"] = Path(where).name
        network.to(context.device)
        val = context.validation_set()
        card["val_accuracy"] = accuracies([network], val, config.squeeze.precision)[0]
        folder.list_skipped({"val": val.bad.files})
    card["bn_layers"] = sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    card["parameters"] = sum(p.numel() for p in network.parameters())
    card["device"] = device_name(context.device)
    card |= context.loader_config.facts(training=config.teacher.source == "train")
    weights.write(run.teacher / teacher.WEIGHTS, network.state_dict())
    write_json(run.teacher / teacher.CARD, card)
    folder.finish()
    top1 = card["val_accuracy"]
    context.reporter.say(f"squeeze: {name} ({card['weights']}) has {top1:.2f} % top-1 on the validation images")


def _pretrained(context: Context) -> tuple[weights.State, str]:
    chosen = context.config.teacher
    if chosen.source == "checkpoint":
        assert chosen.checkpoint
        return weights.read(chosen.checkpoint), str(chosen.checkpoint)
    assert chosen.weights
    member = weights.check_torchvision(chosen.model, chosen.weights, len(context.dataset.classes))
    return torchvision_files.load(member, context.run.weights), str(member)


def _train(context: Context, network: nn.Module, folder: StageFolder) -> Outcome:
    """SGD with Nesterov momentum, linear warm-up and cosine decay, random crops and horizontal flips."""
    squeeze, dataset, seed = context.config.squeeze, context.dataset, context.config.seed

    def loss(output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels, label_smoothing=squeeze.label_smoothing)

    compiled = resolve_compile(
        squeeze.compile, network, [], len(dataset.train) * squeeze.epochs, dataset.spec.size, context.device,
        lambda line: context.reporter.say(f"squeeze: {line}"),
    )  # fmt: skip
    smallest, largest = squeeze.crop_scale
    tracker = context.trackers.start("squeeze", "teacher")
    job = Training(
        model=network,
        optimizer=optimizer(network, squeeze),
        epochs=squeeze.epochs,
        lr=warm_cosine(squeeze),
        lr_per_step=True,
        loss=loss,
        train=TrainingSet(
            index=dataset.train,
            positions=dataset.train.positions(0, len(dataset.classes) - 1),
            spec=dataset.spec,
            augmentation=Augmentation((smallest, largest)),
            batch_size=squeeze.batch_size,
            key=(seed, "squeeze"),
            loader_config=context.loader_config,
        ),
        val=context.validation_set(),
        precision=squeeze.precision,
        validate_every=squeeze.validate_every,
        checkpoint=folder.usable_checkpoint(),
        lr_option="squeeze.lr",
        compile=compiled,
        tracker=tracker,
    )
    with closing(tracker), context.reporter.bar("squeeze", squeeze.epochs * job.train.steps()) as bar:
        outcome = job.run(bar)
    folder.list_skipped({"train": job.train.bad.files, "val": job.val.bad.files})
    return outcome


def optimizer(network: nn.Module, squeeze: Squeeze) -> torch.optim.Optimizer:
    """SGD; biases and BatchNorm have no weight decay."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": decayed, "weight_decay": squeeze.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=squeeze.lr,
        momentum=squeeze.momentum,
        nesterov=squeeze.momentum > 0,
        fused=True,
    )


def warm_cosine(squeeze: Squeeze) -> Callable[[float], float]:
    """Learning rate as a function of the (fractional) epoch: linear warm-up, then cosine decay to zero."""

    def lr(epoch: float) -> float:
        warm = squeeze.warmup_epochs
        if epoch < warm:
            return squeeze.lr * epoch / warm
        return squeeze.lr * (1 + math.cos(math.pi * (epoch - warm) / (squeeze.epochs - warm))) / 2

    return lr
