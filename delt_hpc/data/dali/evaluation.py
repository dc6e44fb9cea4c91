"""The evaluation transform in DALI; pixels differ from torchvision's on PIL images by at most 1/255."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, types
from torch import Tensor

from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.crops import Crops
from delt_hpc.data.dali.files import Files, ImageData
from delt_hpc.data.dali.pipeline import Arguments, PipelineSpec, Request, deliver
from delt_hpc.data.dali.resize import (
    Axis,
    axis,
    edge_arguments,
    inner_arguments,
    resize_inner,
    resize_to_edge,
)
from delt_hpc.data.index import Index
from delt_hpc.data.random_crop import Window
from delt_hpc.data.transforms import evaluation


def evaluation_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    *,
    device: torch.device,
    threads: int,
    bad: BadFiles,
    by_class: bool = False,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """See `delt_hpc.data.loader.evaluation_batches`. JPEGs are decoded on the GPU if `device` is one.

    Do not mix scores of images decoded on a CPU and on a GPU.

    Args:
        threads: number of reading threads, and of DALI's CPU threads.
    """
    pipeline_spec = PipelineSpec(
        Files(index, transform=evaluation(spec), try_first=bad.skips),
        placement(spec),
        evaluation_graph(spec),
        batch_size,
    )
    batches = index.batches(positions, batch_size, by_class=by_class)
    for images, delivered in deliver(pipeline_spec, _requests(batches), bad, device, threads):
        yield images, np.asarray([request.position for request in delivered], dtype=np.int64)


def crop_batches(
    index: Index,
    positions: np.ndarray,
    spec: DatasetSpec,
    batch_size: int,
    crops: Crops,
    *,
    device: torch.device,
    threads: int,
    bad: BadFiles,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """See `delt_hpc.data.loader.crop_batches`. JPEGs are decoded on the GPU if `device` is one."""

    def describe(request: Request, image: ImageData) -> Arguments:
        path = index.paths[request.position]
        windows = (crops.window(path, number, image.height, image.width) for number in range(crops.number))
        return tuple(argument for window in windows for argument in _window_arguments(window, crops.side))

    pipeline_spec = PipelineSpec(Files(index, try_first=bad.skips), describe, _crops_graph(spec, crops), batch_size)
    batches = index.batches(positions, batch_size, by_class=True)
    for images, delivered in deliver(pipeline_spec, _requests(batches), bad, device, threads):
        yield images, np.asarray([request.position for request in delivered], dtype=np.int64)


def _requests(batches: Iterable[np.ndarray]) -> Iterator[list[Request]]:
    for batch in batches:
        yield [Request(position) for position in batch.tolist()]


def _window_arguments(window: Window, side: int) -> Arguments:
    rows, columns = axis(window.height, side, 0, side), axis(window.width, side, 0, side)
    return (
        np.asarray((window.top, window.left), dtype=np.int32),
        np.asarray((window.height, window.width), dtype=np.int32),
        *edge_arguments(rows, columns, window.height, window.width),
    )


def _crops_graph(spec: DatasetSpec, crops: Crops) -> Callable[..., Any]:
    """DALI graph from decoded images, the device and the windows' arguments to float32 [number, 3, side, side]."""

    def graph(image: Any, device: str, *arguments: Any) -> Any:
        each = len(arguments) // crops.number
        cut = []
        for first in range(0, len(arguments), each):
            corner, shape, *edge = arguments[first : first + each]
            window = fn.slice(image, corner, shape, axes=(0, 1))
            cut.append(normalised(resize_to_edge(window, device, crops.side, *edge), spec))
        return fn.stack(*cut, axis=0)

    return graph


def placement(spec: DatasetSpec) -> Callable[[Request, ImageData], Arguments]:
    """Function that gives the graph's arguments for an image: size and crop position as torchvision computes them.

    The longer side is rounded down. If the margins are odd, the crop starts at the even one of two possible pixels.
    Images that PIL decoded are already resized and cropped.
    """
    unchanged = axis(spec.size, spec.size, 0, spec.size)

    def along(length: int, shorter: int) -> Axis:
        resized = spec.resize * length // shorter
        return axis(length, resized, round((resized - spec.size) / 2), spec.size)

    def describe(_: Request, image: ImageData) -> Arguments:
        shorter = min(image.height, image.width)
        rows, columns = (
            unchanged if image.decoded else along(length, shorter) for length in (image.height, image.width)
        )
        return (
            edge_arguments(rows, columns, image.height, image.width)
            if _to_edge(spec)
            else inner_arguments(rows, columns)
        )

    return describe


def evaluation_graph(spec: DatasetSpec) -> Callable[..., Any]:
    """DALI graph from decoded images, the device and `placement`'s arguments to normalised float32 [S, S, 3]."""

    def graph(image: Any, device: str, *arguments: Any) -> Any:
        if _to_edge(spec):
            return normalised(resize_to_edge(image, device, spec.size, *arguments), spec)
        return normalised(resize_inner(image, spec.size, *arguments), spec)

    return graph


def _to_edge(spec: DatasetSpec) -> bool:
    """Whether the crop may contain the outermost rows or columns of the resized image."""
    return spec.resize - spec.size < 2


def normalised(image: Any, spec: DatasetSpec) -> Any:
    """uint8 [S, S, 3] to float32 [S, S, 3]: (value / 255 - mean) / std. DALI has no bfloat16."""
    return fn.crop_mirror_normalize(
        image,
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[255 * value for value in spec.mean],
        std=[255 * value for value in spec.std],
    )
