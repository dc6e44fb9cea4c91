"""Repeat one iteration: on a GPU as a recorded CUDA graph, elsewhere as it is."""

from collections import deque
from collections.abc import Callable

import torch

WARM_UP = 3  # iterations before recording: libraries choose their algorithms and allocate
AHEAD = 16  # iterations the host may be ahead of the GPU


class Replay:
    """Runs `step(images)`, recording it once for each number of images.

    The step may read and write fixed tensors only and must not wait for the GPU. The first iterations of a number of
    images are run as they are; they count as iterations like all others.
    """

    def __init__(self, step: Callable[[int], None], device: torch.device) -> None:
        self._step, self._on_gpu = step, device.type == "cuda"
        self._side = torch.cuda.Stream(device) if self._on_gpu else None
        self._runs: dict[int, int] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._queued: deque[torch.cuda.Event] = deque()

    def __call__(self, images: int) -> None:
        if not self._on_gpu:
            self._step(images)
            return
        self._runs[images] = self._runs.get(images, 0) + 1
        if self._runs[images] <= WARM_UP:
            self._warm_up(images)
        else:
            if images not in self._graphs:
                self._record(images)
            self._graphs[images].replay()
        # Not too far ahead, so that a request to stop is heard within some iterations.
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > AHEAD:
            self._queued.popleft().synchronize()

    def _warm_up(self, images: int) -> None:
        """On a stream of its own, as recording wants it."""
        assert self._side is not None
        if self._graphs and images > max(self._graphs):
            # What smaller graphs hold cannot be used by a larger one; a size that comes back is recorded again.
            torch.cuda.synchronize()
            self._graphs.clear()
            torch.cuda.empty_cache()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            self._step(images)
        torch.cuda.current_stream().wait_stream(self._side)

    def _record(self, images: int) -> None:
        graph = torch.cuda.CUDAGraph()
        # One pool for all: only one graph runs at a time.
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._step(images)
        self._graphs[images] = graph
