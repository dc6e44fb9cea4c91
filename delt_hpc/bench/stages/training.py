"""A step of training as squeeze and evaluate do it, and its plain form: float32, NCHW, uncompiled."""

import copy
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer  # waits for the device, then reads the clock

from delt_hpc.bench.stages.workload import ALLOWED, Block, Case, Settings, checked, random_images, teacher
from delt_hpc.config.schema import Evaluate, Squeeze
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.epochs import TrainingBatch
from delt_hpc.data.index import Index
from delt_hpc.data.loader import LoaderConfig, TrainingSet, ValidationSet
from delt_hpc.data.transforms import Augmentation
from delt_hpc.keyed_random import seeded
from delt_hpc.models.registry import build
from delt_hpc.run.progress import Reporter
from delt_hpc.stages import evaluate, squeeze
from delt_hpc.training.average import MovingAverage
from delt_hpc.training.compiled import compile_network
from delt_hpc.training.loop import Training
from delt_hpc.training.precision import training_dtype

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

WARM_UP_STEPS = 2  # untimed, at the start of each block


class TrainingStep:
    """Steps on one random batch that is already on the device: loading is not timed.

    By default settings it is the stages' own `Training`; the plain form does the same arithmetic.
    """

    def __init__(self, case: Case, settings: Settings) -> None:
        config: Squeeze | Evaluate = Squeeze() if case.stage == "squeeze" else Evaluate()
        self._plain, self._device = settings == "plain", case.device
        self.batch_size = case.batch_size or config.batch_size
        self._network = _initialised(case)
        # As `compile: auto` decides for a long training.
        self._compile = not self._plain and case.device.type == "cuda"
        self._batch = RandomBatch(case, self.batch_size)
        self.dtype = torch.float32 if self._plain else training_dtype(config.precision, case.device)
        if self._plain:
            config = config.model_copy(update={"precision": "float32"})
        self._config = config
        self._loss: Loss = evaluate.hard_loss
        self._mix = None
        if isinstance(config, Evaluate):
            network = teacher(case.teacher, case.spec).to(case.device)
            layout = torch.contiguous_format if self._plain else torch.channels_last
            self._teacher = network.to(memory_format=layout)
            self._loss = evaluate.soft_loss(compile_network(self._teacher) if self._compile else self._teacher, config)
            self._mix = evaluate.mixing(config.mix, case.classes, "bench")
        self._optimizer = optimizer(self._network, config)
        self._average = MovingAverage(self._network, config.ema_decay) if isinstance(config, Evaluate) else None

    def error(self) -> float:
        """Of the gradient of all weights."""
        exact = self._exact_gradient()
        self._run(1, warm_up=0)
        return checked(_gradient(self._network), exact, ALLOWED[self.dtype])

    def block(self, steps: int) -> Block:
        return Block(steps * self.batch_size, steps, self._run(steps, WARM_UP_STEPS))

    def _run(self, steps: int, warm_up: int) -> float:
        """Seconds of the steps after the warm-up."""
        stream = self._batch.stream(steps, warm_up)
        if self._plain:
            self._run_plain(stream)
        else:
            self._run_default(stream)
        return stream.seconds

    def _run_plain(self, stream: "TimedStream") -> None:
        self._network.train()
        for batch in stream.batches(0, 1):
            images, labels = batch.images, stream.labels(batch)
            if self._mix:
                images, labels = self._mix(images, labels, 0, 0)
            loss = self._loss(self._network(images), images, labels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            if self._average:
                self._average.update(self._network)

    def _run_default(self, stream: "TimedStream") -> None:
        with TemporaryDirectory() as folder, Reporter(quiet=True).bar("", 0) as bar:
            Training(
                model=self._network,
                optimizer=self._optimizer,
                epochs=1,
                lr=lambda epoch: self._config.lr,
                lr_option="lr",
                loss=self._loss,
                train=stream,
                val=self._batch.validation(),
                precision=self._config.precision,
                validate_every=1,
                checkpoint=Path(folder) / "checkpoint.pt",
                mix=self._mix,
                ema_decay=self._config.ema_decay if isinstance(self._config, Evaluate) else None,
                compile=self._compile,
            ).run(bar)

    def _exact_gradient(self) -> Tensor:
        """Of the first step, in float64."""
        network = copy.deepcopy(self._network).double().train()
        images, labels = self._batch.images, self._batch.labels
        if self._mix:
            images, labels = self._mix(images, labels, 0, 0)
        loss: Loss = self._loss
        if isinstance(self._config, Evaluate):
            exact_teacher = copy.deepcopy(self._teacher).double()
            loss = evaluate.soft_loss(exact_teacher, self._config.model_copy(update={"precision": "float32"}))
        labels = labels.double() if labels.is_floating_point() else labels
        loss(network(images.double()), images.double(), labels).backward()
        return _gradient(network)


class RandomBatch:
    """One batch of random images and labels on the device."""

    def __init__(self, case: Case, batch_size: int) -> None:
        self._spec, self._loader_config = case.spec, LoaderConfig("torchvision", case.device)
        self.images = random_images(batch_size, case.size, "training").to(case.device)
        self._index = Index(Path(), ("",) * batch_size, np.arange(batch_size) % case.classes)
        self.labels = torch.from_numpy(self._index.labels).to(case.device)

    def stream(self, steps: int, warm_up: int) -> "TimedStream":
        return TimedStream(
            index=self._index,
            positions=np.arange(len(self.images)),
            spec=self._spec,
            augmentation=Augmentation((1.0, 1.0)),
            batch_size=len(self.images),
            key=("bench",),
            loader_config=self._loader_config,
            images=self.images,
            timed=steps,
            warm_up=warm_up,
        )

    def validation(self) -> ValidationSet:
        """The first image alone: a training ends with a validation, which is not timed."""
        return _OneImage(self._index, self._spec, self.images[:1], self.labels[:1], self._loader_config)


@dataclass(frozen=True, eq=False)
class TimedStream(TrainingSet):
    """The same batch again and again. It reads the clock when a batch is requested, which is when a step has ended.

    Attributes:
        timed: steps after the warm-up.
        warm_up: steps before.
    """

    images: Tensor
    timed: int
    warm_up: int
    clock: list[float] = field(default_factory=list)

    def steps(self) -> int:
        return self.timed + self.warm_up

    def batches(self, first: int, last: int, first_step: int = 0) -> Generator[TrainingBatch]:
        for step in range(self.steps()):
            if step == self.warm_up:
                self.clock.append(timer())
            yield TrainingBatch(epoch=first, step=step, images=self.images, positions=self.positions)
        self.clock.append(timer())

    @property
    def seconds(self) -> float:
        """Of the timed steps."""
        start, end = self.clock
        return end - start


class _OneImage(ValidationSet):
    def __init__(
        self, index: Index, spec: DatasetSpec, image: Tensor, label: Tensor, loader_config: LoaderConfig
    ) -> None:
        super().__init__(index, spec, 1, loader_config)
        self._batch = image, label

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self._batch


def optimizer(network: nn.Module, config: Squeeze | Evaluate) -> torch.optim.Optimizer:
    return squeeze.optimizer(network, config) if isinstance(config, Squeeze) else evaluate.optimizer(network, config)


def _initialised(case: Case) -> nn.Module:
    with seeded("bench", case.network):
        return build(case.network, case.classes, case.size).to(case.device)


def _gradient(network: nn.Module) -> Tensor:
    """Of all weights, float64, in one vector."""
    return torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])
