"""Randomly augmented training images through DALI, the same as the PIL pipeline's within 1/255.

Windows, mirroring and RandAugment's steps are drawn in this process from the image's own key, so an epoch's images
depend on neither threads nor batch size, and the graph only carries out what was drawn.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn

from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.dali.evaluation import normalised
from delt_hpc.data.dali.files import Files, ImageData
from delt_hpc.data.dali.pipeline import Arguments, Request, Work, deliver
from delt_hpc.data.dali.randaugment import randaugment, step_arguments
from delt_hpc.data.dali.resize import axis, edge_arguments, resize_to_edge
from delt_hpc.data.epochs import TrainingBatch, shuffled_batches
from delt_hpc.data.index import Index
from delt_hpc.data.randaugment import RandAugment, Step
from delt_hpc.data.random_crop import Window, draw_window
from delt_hpc.data.transforms import Augmentation
from delt_hpc.keyed_random import Key, uniforms


class Draw(NamedTuple):
    """All that is random about an image in an epoch."""

    window: Window
    mirrored: bool
    steps: list[Step]


def training_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    epochs: range,
    *,
    augmentation: Augmentation,
    key: tuple[Key, ...],
    device: torch.device,
    threads: int,
    bad: BadFiles,
    keep_mib: int = 0,
) -> Iterator[TrainingBatch]:
    """Every image once an epoch, reshuffled for each by (key, epoch), augmented by (key, epoch, position).

    Args:
        positions: int64 [n], places in the index.
        epochs: which epochs to deliver, one after the other without a pause between them.
        keep_mib: decoded images are kept in this process's memory up to this size, MiB (height x width x 3 bytes each:
            147 KiB at 224 x 224); images beyond it are read and decoded anew each epoch.
        bad: what becomes of unreadable files.

    Raises:
        UserError: naming unreadable files, unless `bad` skips them.
    """
    describe = _drawn(spec, augmentation, key)
    work = Work(Files(index, keep_mib=keep_mib), describe, training_graph(spec), batch_size + 1)
    requests = (
        [Request(position, epoch) for position in batch.tolist()]
        for epoch in epochs
        for batch in shuffled_batches(positions, batch_size, *key, "order", epoch)
    )
    for images, delivered in deliver(work, requests, bad, device, threads):
        yield TrainingBatch(delivered[0].epoch, images, np.asarray([request.position for request in delivered]))


def draw(spec: DatasetSpec, augmentation: Augmentation, height: int, width: int, stream: Iterator[float]) -> Draw:
    """An image's augmentation from its stream of uniform numbers, taken in the order the PIL pipeline takes them."""
    window = draw_window(stream, height, width, augmentation.crop_scale)
    mirrored = spec.mirror and next(stream) < 0.5
    return Draw(window, mirrored, RandAugment().draw(stream) if augmentation.randaugment else [])


def _drawn(
    spec: DatasetSpec, augmentation: Augmentation, key: tuple[Key, ...]
) -> Callable[[Request, ImageData], Arguments]:
    def describe(request: Request, image: ImageData) -> Arguments:
        stream = uniforms(*key, "augment", request.epoch, request.position)
        return draw_arguments(draw(spec, augmentation, image.height, image.width, stream), spec.size)

    return describe


def draw_arguments(drawn: Draw, size: int) -> Arguments:
    """`training_graph`'s arguments."""
    window = drawn.window
    rows, columns = axis(window.height, size, 0, size), axis(window.width, size, 0, size)
    return (
        np.asarray((window.top, window.left), dtype=np.int32),
        np.asarray((window.height, window.width), dtype=np.int32),
        *edge_arguments(rows, columns, window.height, window.width),
        np.asarray(drawn.mirrored, dtype=np.int32),
        *step_arguments(drawn.steps, size),
    )


def training_graph(spec: DatasetSpec) -> Callable[..., Any]:
    """Function of decoded images, the device and `draw_arguments`: normalised images, float32 [3, S, S]."""

    def graph(image: Any, device: str, corner: Any, shape: Any, *arguments: Any) -> Any:
        *edge, mirrored, kinds, values, matrices = arguments
        image = fn.slice(image, corner, shape, axes=(0, 1))
        image = resize_to_edge(image, device, spec.size, *edge)
        image = fn.flip(image, horizontal=mirrored)
        return normalised(randaugment(image, device, spec.size, kinds, values, matrices), spec)

    return graph
