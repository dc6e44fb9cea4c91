"""Images through a DALI graph: read ahead, fed, checked against what was asked, and mended where a file is damaged.

DALI cannot skip a file, its errors do not always name it, and a pipeline that met one is lost with every batch in it.
So files are fed by this process, which knows the batches that are in the pipeline: after an error each of their files
is tried alone, PIL has the last word on those that fail, and a new pipeline takes up what was not delivered.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
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

# Batches inside a pipeline, and read but not yet in it: one being computed and one ready for each.
_DEPTH = 2
_DALI_TYPES = {np.dtype(np.int32): types.INT32, np.dtype(np.float32): types.FLOAT}

Arguments = tuple[np.ndarray, ...]
Graph = Callable[..., Any]


class _LostPipelineError(Exception):
    """A pipeline met an error and cannot be used any more."""


class Request(NamedTuple):
    """An image to deliver; of training images also in which epoch, which decides how it is augmented."""

    position: int
    epoch: int = 0


class Item(NamedTuple):
    """An image and the graph's arguments for it, int32 or float32 arrays that have the same shapes for all images."""

    request: Request
    image: ImageData
    arguments: Arguments


Describe = Callable[[Request, ImageData], Arguments]


class Work(NamedTuple):
    """What is to be done to which images.

    Attributes:
        files: where they are read.
        describe: the graph's arguments for an image.
        graph: function of the decoded images, the device ("cpu" or "gpu") and the arguments, all DALI nodes; returns
            float32 [3, S, S].
        batch_size: images in the largest batch.
    """

    files: Files
    describe: Describe
    graph: Graph
    batch_size: int


def decode(content: Any, device: str) -> Any:
    """RGB pixels of JPEGs, as PIL decodes them: not turned by EXIF, smooth chroma, the exact inverse DCT.

    Whole images are decoded, since region decoding of JPEGs on a GPU crashes in nvImageCodec 0.9.
    """
    return fn.decoders.image(
        content,
        device="mixed" if device == "gpu" else "cpu",
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        use_fast_idct=False,
    )


def pixels(content: Any, decoded: Any, shape: Any, device: str) -> Any:
    """The images of a batch that JPEGs and decoded images share. Only inside a pipeline with conditionals."""
    if decoded:
        image = fn.reshape(content, shape=shape, layout="HWC")
        if device == "gpu":
            image = image.gpu()
    else:
        image = decode(content, device)
    return image


def kind(device: torch.device) -> str:
    """DALI's name of a device's kind."""
    return "gpu" if device.type == "cuda" else "cpu"


def make_pipeline(work: Work, source: Iterator[Any], example: Arguments, device: torch.device, threads: int) -> Any:
    """A pipeline, not yet built, with the outputs images and positions int64.

    Args:
        source: batches as `_feed` gives them.
        example: one image's arguments.
    """

    def graph() -> tuple[Any, Any]:
        content, decoded, shape, positions, *arguments = fn.external_source(
            source,
            num_outputs=4 + len(example),
            dtype=[types.UINT8, types.BOOL, types.INT32, types.INT64, *(_DALI_TYPES[array.dtype] for array in example)],
            ndim=[1, 0, 1, 0, *(array.ndim for array in example)],
        )
        image = pixels(content, decoded, shape, kind(device))
        return work.graph(image, kind(device), *arguments), positions

    definition = pipeline_def(enable_conditionals=True)(graph)
    return definition(batch_size=work.batch_size, num_threads=threads, device_id=_device_id(device))


def deliver(
    work: Work, requests: Iterable[Sequence[Request]], bad: BadFiles, device: torch.device, threads: int
) -> Iterator[tuple[Tensor, list[Request]]]:
    """The graph's images of each batch of requests, in order: float32 [B, 3, S, S] on the device.

    Bad files that are skipped leave their batch smaller; a batch of nothing else is left out.

    Raises:
        UserError: naming unreadable files, unless `bad` takes note of them only.
    """
    asked = delivered = 0
    skipped = len(bad.skipped)

    def counted() -> Iterator[Sequence[Request]]:
        nonlocal asked
        for batch in requests:
            asked += len(batch)
            yield batch

    with _read_ahead(work, counted(), bad, threads) as batches:
        waiting: Iterator[list[Item]] = batches
        while (first := next(waiting, None)) is not None:
            fed: deque[list[Item]] = deque()
            source = _feed(chain([first], waiting), fed)
            try:
                with closing(_run(work, source, first[0].arguments, device, threads)) as run:
                    for images, positions in run:
                        batch = _checked(positions, fed.popleft())
                        yield images, batch
                        delivered += len(batch)
            except _LostPipelineError as lost:
                waiting = chain(_mend(work, list(fed), bad, device, lost), waiting)
            finally:
                if device.type == "cuda":
                    nvidia.dali.backend.ReleaseUnusedMemory()  # DALI would keep it, and a network needs it
    if asked != delivered + len(bad.skipped) - skipped:
        raise RuntimeError(f"{asked} images were asked for and {delivered} delivered")


def _device_id(device: torch.device) -> int | None:
    return (device.index or 0) if device.type == "cuda" else None


def _feed(batches: Iterator[list[Item]], fed: deque[list[Item]]) -> Iterator[Any]:
    """Batches as an external source gives them; what a pipeline has taken is noted in `fed`."""
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
    work: Work, source: Iterator[Any], example: Arguments, device: torch.device, threads: int
) -> Generator[tuple[Tensor, Tensor]]:
    """Images and positions of a new pipeline until its source ends."""
    pipeline = make_pipeline(work, source, example, device, threads)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    while True:
        try:
            images, positions = pipeline.run(stream)
        except StopIteration:
            return
        except RuntimeError as error:
            raise _LostPipelineError(str(error)) from error
        yield from_dlpack(images.as_tensor()), from_dlpack(positions.as_tensor())


def _checked(delivered: Tensor, asked: list[Item]) -> list[Request]:
    requests = [item.request for item in asked]
    if delivered.tolist() != [request.position for request in requests]:
        raise RuntimeError(f"DALI delivered the positions {delivered.tolist()} where {requests} were asked for")
    return requests


def _mend(
    work: Work, batches: Sequence[list[Item]], bad: BadFiles, device: torch.device, lost: Exception
) -> list[list[Item]]:
    """The batches of a lost pipeline without the cause of its error."""

    def tried(item: Item) -> Item | BadFile:
        if item.image.decoded or _decodes(item.image.content, device):
            return item
        return _item(work, item.request, work.files.decoded(item.request.position))

    mended = [[tried(item) for item in batch] for batch in batches]
    if all(new is old for pair in zip(mended, batches, strict=True) for new, old in zip(*pair, strict=True)):
        raise lost  # no file is to blame
    return [good for batch in mended if (good := _good(work, batch, bad))]


def _decodes(content: np.ndarray, device: torch.device) -> bool:
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=_device_id(device), prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(decode(fn.external_source(name="content", dtype=types.UINT8, ndim=1), kind(device)))
    try:
        pipeline.run(content=[content])
    except RuntimeError:
        return False
    return True


def _item(work: Work, request: Request, image: ImageData | BadFile) -> Item | BadFile:
    return image if isinstance(image, BadFile) else Item(request, image, work.describe(request, image))


def _good(work: Work, items: Sequence[Item | BadFile], bad: BadFiles) -> list[Item]:
    """The items without bad files, which are reported."""
    bad.report(work.files.index.root, [item for item in items if isinstance(item, BadFile)])
    return [item for item in items if isinstance(item, Item)]


@contextmanager
def _read_ahead(
    work: Work, requests: Iterable[Sequence[Request]], bad: BadFiles, threads: int
) -> Iterator[Iterator[list[Item]]]:
    """Batches read by `threads` threads while others are computed, without their bad files."""

    def read(part: Sequence[Request]) -> list[Item | BadFile]:
        return [_item(work, request, work.files.read(request.position)) for request in part]

    def batches() -> Iterator[list[Item]]:
        ahead: deque[list[Future[list[Item | BadFile]]]] = deque()
        for batch in chain(requests, [()] * _DEPTH):
            share = max(1, -(-len(batch) // threads))
            ahead.append([pool.submit(read, batch[at : at + share]) for at in range(0, len(batch), share)])
            if len(ahead) > _DEPTH and (good := _good(work, _joined(ahead.popleft()), bad)):
                yield good

    pool = ThreadPoolExecutor(threads)
    try:
        yield batches()
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(parts: Sequence[Future[list[Item | BadFile]]]) -> list[Item | BadFile]:
    return [item for part in parts for item in part.result()]
