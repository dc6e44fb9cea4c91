"""Run the same iteration again and again: on a GPU as a CUDA graph, elsewhere as it is."""

from collections import deque
from collections.abc import Callable

import torch

WARM_UP = 3  # iterations before a graph is recorded, in which libraries choose algorithms and allocate memory
MAX_QUEUED_ITERATIONS = 16  # limits how far the host runs ahead, so that it reacts to a request to stop in time


class GraphedIteration:
    """Runs `iteration(images)`, recorded as one CUDA graph for each number of images.

    The iteration may only read and write tensors at fixed addresses, and must not wait for the GPU. For each number of
    images the first WARM_UP calls run without a graph; they are ordinary iterations too.
    """

    def __init__(self, iteration: Callable[[int], None], device: torch.device) -> None:
        self._iteration, self._on_gpu = iteration, device.type == "cuda"
        self._warm_up_stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._calls: dict[int, int] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._queued: deque[torch.cuda.Event] = deque()

    def __call__(self, images: int) -> None:
        if not self._on_gpu:
            self._iteration(images)
            return
        self._calls[images] = self._calls.get(images, 0) + 1
        if self._calls[images] <= WARM_UP:
            self._warm_up(images)
        else:
            if images not in self._graphs:
                self._record(images)
            self._graphs[images].replay()
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > MAX_QUEUED_ITERATIONS:
            self._queued.popleft().synchronize()

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

    def _record(self, images: int) -> None:
        graph = torch.cuda.CUDAGraph()
        # All graphs share one memory pool, because only one runs at a time.
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._iteration(images)
        self._graphs[images] = graph
