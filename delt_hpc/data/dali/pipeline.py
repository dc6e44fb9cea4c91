"""Runs a DALI graph on images: reads files ahead, feeds them, checks what is delivered, and recovers from bad files.

DALI cannot skip a damaged file, its errors do not always name it, and after an error a pipeline and all batches in it
are lost. So this process feeds the files itself and remembers the batches inside the pipeline. After an error it tries
each of their files alone, decodes those that fail with PIL, and restarts with a new pipeline and the lost batches.
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import nvidia.dali
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from delt_hpc.data.bad_files import BadFile, BadFiles
from delt_hpc.data.dali.files import Files, ImageData

# Number of batches inside a pipeline, and of batches read ahead of it: one in progress and one ready.
_DEPTH = 2
_DALI_TYPES = {np.dtype(np.int32): types.INT32, np.dtype(np.float32): types.FLOAT}

Arguments = tuple[np.ndarray, ...]
Graph = Callable[..., Any]


class _LostPipelineError(Exception):
    """A pipeline had an error and cannot be used any more."""


class Request(NamedTuple):
    """A request for an image; the epoch of training images determines their augmentation.

    `step` is the number of the image's batch in the epoch.
    """

    position: int
    epoch: int = 0
    step: int = 0


class Item(NamedTuple):
    """An image and the graph's arguments for it: int32 or float32 arrays, of the same shapes for all images."""

    request: Request
    image: ImageData
    arguments: Arguments


Describe = Callable[[Request, ImageData], Arguments]


class PipelineSpec(NamedTuple):
    """The images and graph of a pipeline.

    Attributes:
        files: reads the images.
        describe: function that gives the graph's arguments for an image.
        graph: function of the decoded image and the arguments (DALI nodes) and the device ("cpu" or "gpu"); returns
            float32 [S, S, 3].
        batch_size: the largest number of images in a batch.
    """

    files: Files
    describe: Describe
    graph: Graph
    batch_size: int


def decode(content: Any, device: str) -> Any:
    """RGB pixels of JPEGs, decoded as by PIL: no EXIF rotation, fancy upsampling of chroma, exact inverse DCT.

    Whole images are decoded, because region decoding on a GPU crashes in nvImageCodec 0.9.
    """
    return fn.decoders.image(
        content,
        device="mixed" if device == "gpu" else "cpu",
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        use_fast_idct=False,
    )


def pixels(content: Any, decoded: Any, shape: Any, device: str) -> Any:
    """The pixels of a batch of JPEGs and decoded images. Requires a pipeline with conditionals enabled."""
    if decoded:
        image = fn.reshape(content, shape=shape, layout="HWC")
        if device == "gpu":
            image = image.gpu()
    else:
        image = decode(content, device)
    return image


def kind(device: torch.device) -> str:
    """DALI's name of the device type."""
    return "gpu" if device.type == "cuda" else "cpu"


def make_pipeline(
    spec: PipelineSpec, source: Iterator[Any], example: Arguments, device: torch.device, threads: int
) -> Any:
    """A pipeline, not yet built, with two outputs: images and positions int64.

    Args:
        source: batches from `_feed`.
        example: the arguments of one image, for their types and dimensions.
    """

    def graph() -> tuple[Any, Any]:
        content, decoded, shape, positions, *arguments = fn.external_source(
            source,
            num_outputs=4 + len(example),
            dtype=[types.UINT8, types.BOOL, types.INT32, types.INT64, *(_DALI_TYPES[array.dtype] for array in example)],
            ndim=[1, 0, 1, 0, *(array.ndim for array in example)],
        )
        image = pixels(content, decoded, shape, kind(device))
        return spec.graph(image, kind(device), *arguments), positions

    definition = pipeline_def(enable_conditionals=True)(graph)
    return definition(batch_size=spec.batch_size, num_threads=threads, device_id=_device_id(device))


def deliver(
    spec: PipelineSpec, requests: Iterable[Sequence[Request]], bad: BadFiles, device: torch.device, threads: int
) -> Iterator[tuple[Tensor, list[Request]]]:
    """The graph's output for each batch of requests, in order: float32 [B, 3, S, S] on the device.

    Skipped files make a batch smaller; an empty batch is omitted.

    Raises:
        UserError: naming unreadable files, unless `bad` skips them.
        RuntimeError: DALI fails although every file can be decoded, or it delivers other images than requested.
    """
    requested = delivered = 0
    skipped = len(bad.skipped)

    def counted() -> Iterator[Sequence[Request]]:
        nonlocal requested
        for batch in requests:
            requested += len(batch)
            yield batch

    with _read_ahead(spec, counted(), bad, threads) as batches:
        waiting: Iterator[list[Item]] = batches
        while (first := next(waiting, None)) is not None:
            fed: deque[list[Item]] = deque()
            source = _feed(chain([first], waiting), fed)
            try:
                with closing(_run(spec, source, first[0].arguments, device, threads)) as run:
                    for images, positions in run:
                        batch = _checked(positions, fed.popleft())
                        yield images, batch
                        delivered += len(batch)
            except _LostPipelineError as lost:
                waiting = chain(_without_bad_files(spec, list(fed), bad, device, lost), waiting)
            finally:
                if device.type == "cuda":
                    nvidia.dali.backend.ReleaseUnusedMemory()  # otherwise DALI keeps it from PyTorch
    if requested != delivered + len(bad.skipped) - skipped:
        raise RuntimeError(f"{requested} images were requested, but DALI delivered {delivered}")


def _device_id(device: torch.device) -> int | None:
    return (device.index or 0) if device.type == "cuda" else None


def _feed(batches: Iterator[list[Item]], fed: deque[list[Item]]) -> Iterator[Any]:
    """Batches for DALI's external source; each batch that a pipeline takes is appended to `fed`."""
    for batch in batches:
        fed.append(batch)
        images = [item.image for item in batch]
        yield (
            [image.content for image in images],
            np.asarray([image.decoded for image in images]),
            np.asarray([(image.height, image.width, 3) for image in images], dtype=np.int32),
            np.asarray([item.request.position for item in batch], dtype=np.int64),
            *(np.stack(arrays) for arrays in zip(*(item.arguments for item in batch), strict=True)),
        )


def _run(
    spec: PipelineSpec, source: Iterator[Any], example: Arguments, device: torch.device, threads: int
) -> Generator[tuple[Tensor, Tensor]]:
    """Images and positions from a new pipeline, until its source is exhausted."""
    pipeline = make_pipeline(spec, source, example, device, threads)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    while True:
        try:
            images, positions = pipeline.run(stream)
        except StopIteration:
            return
        except RuntimeError as error:
            raise _LostPipelineError(str(error)) from error
        yield from_dlpack(images.as_tensor()).movedim(-1, -3), from_dlpack(positions.as_tensor())


def _checked(delivered: Tensor, batch: list[Item]) -> list[Request]:
    requests = [item.request for item in batch]
    if delivered.tolist() != [request.position for request in requests]:
        raise RuntimeError(f"DALI delivered the positions {delivered.tolist()}, but {requests} were requested")
    return requests


def _without_bad_files(
    spec: PipelineSpec, batches: Sequence[list[Item]], bad: BadFiles, device: torch.device, lost: Exception
) -> list[list[Item]]:
    """The batches of a lost pipeline without the files that caused its error."""

    def retried(item: Item) -> Item | BadFile:
        said = None if item.image.decoded else _refusal(item.image.content, device)
        if said is None:
            return item
        by_pil = spec.files.decoded(item.request.position)
        if isinstance(by_pil, BadFile) and said:
            by_pil = replace(by_pil, reason=f"{by_pil.reason} (DALI: {said})")
        return _item(spec, item.request, by_pil)

    new_batches = [[retried(item) for item in batch] for batch in batches]
    if all(new is old for pair in zip(new_batches, batches, strict=True) for new, old in zip(*pair, strict=True)):
        raise lost  # not caused by a file
    return [good for batch in new_batches if (good := _good(spec, batch, bad))]


def _refusal(content: np.ndarray, device: torch.device) -> str | None:
    """What DALI and its decoders say about a JPEG that they cannot decode; None if they can."""
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=_device_id(device), prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(decode(fn.external_source(name="content", dtype=types.UINT8, ndim=1), kind(device)))
    try:
        with _captured_messages() as said:
            pipeline.run(content=[content])
    except RuntimeError as error:
        # DALI's own reason is empty where a decoder prints it.
        own = [line.partition(" : ")[2] for line in str(error).splitlines() if line.startswith("Failed to decode")]
        return "; ".join(dict.fromkeys(line.strip() for line in (*own, *said) if line.strip()))
    return None


@contextmanager
def _captured_messages() -> Iterator[list[str]]:
    """The lines that libraries print on the process's standard error in this block, which do not say which file."""
    lines: list[str] = []
    try:
        original = os.dup(2)
    except OSError:  # closed
        yield lines
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(original, 2)
            os.close(original)
            file.seek(0)
            # Lines with control characters are the progress bar's.
            lines += [line for line in file.read().decode(errors="replace").splitlines() if line.isprintable()]


def _item(spec: PipelineSpec, request: Request, image: ImageData | BadFile) -> Item | BadFile:
    return image if isinstance(image, BadFile) else Item(request, image, spec.describe(request, image))


def _good(spec: PipelineSpec, items: Sequence[Item | BadFile], bad: BadFiles) -> list[Item]:
    """The readable items; bad files are reported."""
    bad.report(spec.files.index.root, [item for item in items if isinstance(item, BadFile)])
    return [item for item in items if isinstance(item, Item)]


@contextmanager
def _read_ahead(
    spec: PipelineSpec, requests: Iterable[Sequence[Request]], bad: BadFiles, threads: int
) -> Iterator[Iterator[list[Item]]]:
    """Batches read ahead by `threads` threads, without their bad files."""

    def read(part: Sequence[Request]) -> list[Item | BadFile]:
        return [_item(spec, request, spec.files.read(request.position)) for request in part]

    def batches() -> Iterator[list[Item]]:
        ahead: deque[list[Future[list[Item | BadFile]]]] = deque()
        for batch in chain(requests, [()] * _DEPTH):
            share = max(1, -(-len(batch) // threads))
            ahead.append([pool.submit(read, batch[start : start + share]) for start in range(0, len(batch), share)])
            if len(ahead) > _DEPTH and (good := _good(spec, _joined(ahead.popleft()), bad)):
                yield good

    pool = ThreadPoolExecutor(threads)
    try:
        yield batches()
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(parts: Sequence[Future[list[Item | BadFile]]]) -> list[Item | BadFile]:
    return [item for part in parts for item in part.result()]
