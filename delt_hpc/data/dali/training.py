"""The training transform in DALI; pixels differ from the PIL loader's by at most 1/255.

This process draws crop windows, mirroring and RandAugment steps from the key of each image and passes them to the DALI
graph as arguments, so images do not depend on threads or batch size.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn

from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.dali.evaluation import normalised
from delt_hpc.data.dali.files import Files, ImageData
from delt_hpc.data.dali.pipeline import Arguments, PipelineSpec, Request, deliver
from delt_hpc.data.dali.randaugment import randaugment, step_arguments
from delt_hpc.data.dali.resize import axis, edge_arguments, resize_to_edge
from delt_hpc.data.epochs import TrainingBatch, requested_batches
from delt_hpc.data.index import Index
from delt_hpc.data.randaugment import RandAugment, Step
from delt_hpc.data.random_crop import Window, draw_window
from delt_hpc.data.transforms import Augmentation
from delt_hpc.keyed_random import Key, uniforms


class Draw(NamedTuple):
    """The random augmentation of an image in an epoch."""

    window: Window
    mirrored: bool
    steps: list[Step]


def training_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    epochs: range,
    first_step: int = 0,
    *,
    augmentation: Augmentation,
    key: tuple[Key, ...],
    device: torch.device,
    threads: int,
    bad: BadFiles,
    cache_mib: int = 0,
) -> Generator[TrainingBatch]:
    """See `delt_hpc.data.loader.TrainingSet.batches`. Shuffled by (key, epoch), augmented by (key, epoch, position).

    Args:
        cache_mib: memory of this process for decoded images, MiB; an image takes height x width x 3 bytes. Images that
            do not fit are read and decoded again in each epoch.
    """
    describe = _drawn(spec, augmentation, key)
    pipeline_spec = PipelineSpec(
        Files(index, cache_mib=cache_mib, try_first=bad.skips), describe, training_graph(spec), batch_size + 1
    )
    requests = (
        [Request(position, epoch, step) for position in batch.tolist()]
        for epoch, step, batch in requested_batches(positions, batch_size, epochs, first_step, *key)
    )
    for images, delivered in deliver(pipeline_spec, requests, bad, device, threads):
        _, epoch, step = delivered[0]
        yield TrainingBatch(epoch, step, images, np.asarray([request.position for request in delivered]))


def draw(spec: DatasetSpec, augmentation: Augmentation, height: int, width: int, stream: Iterator[float]) -> Draw:
    """An image's augmentation from its stream of uniform numbers, consumed in the same order as by the PIL loader."""
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
    """DALI graph from decoded images, the device and `draw_arguments` to normalised images, float32 [S, S, 3]."""

    def graph(image: Any, device: str, corner: Any, shape: Any, *arguments: Any) -> Any:
        *edge, mirrored, kinds, values, matrices = arguments
        image = fn.slice(image, corner, shape, axes=(0, 1))
        image = resize_to_edge(image, device, spec.size, *edge)
        image = fn.flip(image, horizontal=mirrored)
        return normalised(randaugment(image, device, spec.size, kinds, values, matrices), spec)

    return graph
