"""Execution times of a function on a GPU or a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.benchmark import Timer
from triton.testing import do_bench

WARM_UP = 3  # calls before the CUDA graph is captured
MIN_SECONDS, MAX_SECONDS = 0.05, 0.5  # of all runs on a CPU
QUANTILES = (0.5, 0.2, 0.8)


class Times(NamedTuple):
    """Median and the 20th and 80th percentiles, in milliseconds."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def measure(run: Callable[[], object], device: torch.device) -> Times:
    """Times of `run`, warmed up.

    On a GPU, `run` is captured in a CUDA graph, so that no time of Python or of kernel launches counts, and the L2
    cache is cleared before each replay. Capturing needs a stream of its own: call this inside `capture_stream`.
    """
    if device.type == "cpu":
        timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        taken = timer.adaptive_autorange(min_run_time=MIN_SECONDS, max_run_time=MAX_SECONDS)
        return Times(*(1e3 * np.quantile(taken.times, QUANTILES)).tolist())
    for _ in range(WARM_UP):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device)):
        run()
    return Times(*do_bench(graph.replay, quantiles=QUANTILES))


@contextmanager
def capture_stream(device: torch.device) -> Iterator[None]:
    """A CUDA stream for everything inside: autograd runs a backward pass on the stream of its forward pass."""
    if device.type == "cpu":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
