"""Run the same iteration again and again: on a GPU as a CUDA graph, elsewhere as it is."""

import warnings
from collections import deque
from collections.abc import Callable
from typing import Literal

import torch

from delt_hpc.errors import UserError

WARM_UP = 3  # iterations before a graph is recorded, in which libraries choose algorithms and allocate memory
MAX_QUEUED_ITERATIONS = 16  # limits how far the host runs ahead, so that it reacts to a request to stop in time


class GraphedIteration:
    """Runs `iteration(images)`, recorded as one CUDA graph for each number of images.

    The iteration may only read and write tensors at fixed addresses, and must not wait for the GPU. For each number of
    images the first WARM_UP calls run without a graph; they are ordinary iterations too.

    Args:
        graphs: false: no graphs. auto: if recording fails, a warning says why, and all later iterations run without a
            graph. true: if recording fails, it is an error.
    """

    def __init__(
        self, iteration: Callable[[int], None], device: torch.device, graphs: bool | Literal["auto"] = "auto"
    ) -> None:
        self._iteration, self._on_gpu, self._graphs_option = iteration, device.type == "cuda", graphs
        self._records = graphs is not False
        self._warm_up_stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._calls: dict[int, int] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._queued: deque[torch.cuda.Event] = deque()

    def __call__(self, images: int) -> None:
        if not self._on_gpu:
            self._iteration(images)
            return
        self._calls[images] = self._calls.get(images, 0) + 1
        if self._records and self._calls[images] > WARM_UP and images not in self._graphs:
            self._try_to_record(images)
        if not self._records:
            self._iteration(images)
        elif images in self._graphs:
            self._graphs[images].replay()
        else:
            self._warm_up(images)
        self._limit_queue()

    def _warm_up(self, images: int) -> None:
        """Run without a graph, on a side stream, which PyTorch requires before recording."""
        assert self._warm_up_stream is not None
        if self._graphs and images > max(self._graphs):
            # A larger pass cannot use the memory that graphs of smaller ones hold. A smaller size that comes back is
            # recorded again.
            torch.cuda.synchronize()
            self._graphs.clear()
            torch.cuda.empty_cache()
        self._warm_up_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._warm_up_stream):
            self._iteration(images)
        torch.cuda.current_stream().wait_stream(self._warm_up_stream)

    def _limit_queue(self) -> None:
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > MAX_QUEUED_ITERATIONS:
            self._queued.popleft().synchronize()

    def _try_to_record(self, images: int) -> None:
        try:
            self._record(images)
        except torch.OutOfMemoryError:
            raise  # running without a graph would need as much
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            if self._graphs_option is True:
                raise UserError(
                    f"the iteration could not be recorded as a CUDA graph: {reason}",
                    where="recover.graphs: true",
                    remedy="set recover.graphs: auto or false",
                ) from error
            warnings.warn(
                f"the iteration could not be recorded as a CUDA graph, and recovery goes on without: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            self._records = False
            self._graphs.clear()

    def _record(self, images: int) -> None:
        graph = torch.cuda.CUDAGraph()
        # All graphs share one memory pool, because only one runs at a time.
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool):
                self._iteration(images)
        finally:
            torch.cuda.set_stream(stream)  # a failed recording may leave its own stream as the current one
        self._graphs[images] = graph
