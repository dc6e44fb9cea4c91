"""How long a function takes on a device, and how fast the device copies memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

WARM_UP = 3
RUNS = 50  # on a GPU
FEWEST_RUNS, SECONDS = 5, 0.2  # on a CPU: at least so many, and for at least so long
FLUSH = 256 * 2**20  # bytes, more than the last cache of a GPU
COPIED = {"cuda": 2**30, "cpu": 64 * 2**20}  # bytes


class Times(NamedTuple):
    """Median, and what 20 % and 80 % of the runs stay below."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def times(run: Callable[[], object], device: torch.device) -> Times:
    """Times of `run`, warmed up.

    On a GPU they are those of a CUDA graph of one call, as a training loop that is captured replays it: no time of
    Python or of launches. The cache is filled with something else before each replay. `run` works on the current
    stream; call this inside `working_stream`.
    """
    for _ in range(WARM_UP):
        run()
    taken = _replayed(run, device) if device.type == "cuda" else _called(run)
    median, p20, p80 = np.quantile(taken, (0.5, 0.2, 0.8))
    return Times(float(median), float(p20), float(p80))


@contextmanager
def working_stream(device: torch.device) -> Iterator[None]:
    """A stream that can be captured: autograd runs a backward pass where its forward pass ran."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a large copy within the device's memory, read and written bytes together."""
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / times(lambda: target.copy_(source), device).median_ms / 1e6


def _replayed(run: Callable[[], object], device: torch.device) -> list[float]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device)):
        run()
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device)
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(RUNS)]
    for start, end in marks:
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in marks]


def _called(run: Callable[[], object]) -> list[float]:
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < FEWEST_RUNS or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        run()
        taken.append((time.perf_counter() - start) * 1e3)
    return taken
