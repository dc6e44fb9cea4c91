"""Rows of a benchmark's table: each workload is checked, warmed up, and timed in several blocks."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from statistics import median
from typing import Any

import torch
from torch.utils.benchmark import timer  # waits for the device, then reads the clock

from delt_hpc.bench.floor import Work, work
from delt_hpc.bench.peaks import Peak, measured_peak
from delt_hpc.bench.stages.workload import Block, Case, Workload
from delt_hpc.models.registry import build
from delt_hpc.recovery.precision import backend_flags

MESSAGE_LENGTH = 200  # characters of an error in a row

Start = Callable[[], Workload]


class Row:
    """A workload and its times, or the reason why it has none.

    Args:
        start: builds the workload.
        tf32: whether products in float32 may use TF32.
    """

    def __init__(self, case: Case, start: Start, *, tf32: bool = False) -> None:
        self.case, self._start, self._tf32 = case, start, tf32
        self._blocks: list[Block] = []
        self._facts: dict[str, Any] = {}

    @property
    def rate(self) -> float | None:
        """Images per second: the median of the blocks."""
        return median(self._rates()) if self._blocks else None

    def prepare(self, seconds: float) -> None:
        """Build the workload, check and warm it up, and choose the number of steps that take about `seconds`."""
        device, began = self.case.device, timer()
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        resident = torch.cuda.memory_allocated(device) if on_gpu else 0
        try:
            self.workload = self._start()
            self._facts["batch_size"] = self.workload.batch_size
            self._facts["precision"] = str(self.workload.dtype).removeprefix("torch.")
            self._facts["error"] = self.workload.error()
            self.workload.block(1)
            self._facts["start_s"] = timer() - began
            self._steps = max(1, round(seconds / self.workload.block(1).seconds))
        except Exception as error:  # whatever fails in one row, the others can still be measured
            self._facts["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MESSAGE_LENGTH]
            return
        if on_gpu:
            self._facts["peak_gib"] = (torch.cuda.max_memory_allocated(device) - resident) / 2**30

    def time_block(self) -> None:
        if "failure" not in self._facts:
            self._blocks.append(self.workload.block(self._steps))

    def numbers(self) -> dict[str, Any]:
        """Columns of the table. `images`, `ms` and `floor_ms` are those of a pass."""
        if self.rate is None:
            return self._facts
        images, dtype = self._blocks[0].images / self._blocks[0].passes, self.workload.dtype
        reached, rates = peak(dtype, self.case.device, self._tf32), self._rates()
        floor = floor_seconds(self.case, images, dtype.itemsize, reached)
        return self._facts | {
            "images_per_s": self.rate,
            "spread": (max(rates) - min(rates)) / self.rate,
            "repeats": len(rates),
            "images": images,
            "ms": 1000 * images / self.rate,
            "floor_ms": 1000 * floor,
            "floor_share": floor / (images / self.rate),
            "peak_tflops": reached.flops_per_s / 1e12,
            "peak_gb_per_s": reached.bytes_per_s / 1e9,
        }

    def _rates(self) -> list[float]:
        return [block.images / block.seconds for block in self._blocks]


def time_in_turns(rows: Sequence[Row], seconds: float, repeats: int) -> None:
    """Their blocks take turns, so that a busy machine slows down all of them.

    Args:
        seconds: aim for the length of a block.
        repeats: blocks of each row, of which the median counts.
    """
    for row in rows:
        row.prepare(seconds)
    for _ in range(repeats):
        for row in rows:
            row.time_block()


def floor_seconds(case: Case, images: float, element: int, reached: Peak) -> float:
    """The shortest time of a pass of the case's stage, with `element` bytes for each activation and weight."""
    network = needs(case.network, case.classes, case.size)
    if case.stage == "recover":
        return network.seconds(images, element, reached)
    if case.stage == "rank":
        return network.inference_seconds(images, element, reached)
    seconds = network.training_seconds(images, element, reached)
    if case.stage == "evaluate":
        seconds += needs(case.teacher, case.classes, case.size).inference_seconds(images, element, reached)
    return seconds


@cache
def needs(network: str, classes: int, size: int) -> Work:
    return work(build(network, classes, size).eval(), size)


@cache
def peak(dtype: torch.dtype, device: torch.device, tf32: bool) -> Peak:
    with backend_flags(tf32=tf32):
        return measured_peak(dtype, device)


def other_process() -> ProcessPoolExecutor:
    """For an `Elsewhere`. The process leaves its allocator as it is: glibc's settings cannot be taken back."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


class Elsewhere:
    """A workload in another process."""

    def __init__(self, process: ProcessPoolExecutor, start: Start) -> None:
        self._process = process
        self.dtype, self.batch_size = process.submit(_begin, start, torch.get_num_threads()).result()

    def error(self) -> float:
        return self._process.submit(_error).result()

    def block(self, steps: int) -> Block:
        return self._process.submit(_block, steps).result()


_here: list[Workload] = []  # of this process, if it is the other one


def _begin(start: Start, threads: int) -> tuple[torch.dtype, int]:
    torch.set_num_threads(threads)
    _here[:] = [start()]
    return _here[0].dtype, _here[0].batch_size


def _error() -> float:
    return _here[0].error()


def _block(steps: int) -> Block:
    return _here[0].block(steps)
