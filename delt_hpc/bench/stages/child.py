"""A workload in a process of its own, whose allocator is left as it is: glibc's settings cannot be taken back."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from delt_hpc.bench.stages.settings import start
from delt_hpc.bench.stages.workload import Block, Case, Settings
from delt_hpc.run.allocator import SWITCH


class ChildWorkload:
    """Use it as a context manager, which ends the process."""

    def __init__(self, case: Case, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, case, settings, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    def __enter__(self) -> "ChildWorkload":
        before = os.environ.get(SWITCH)
        os.environ[SWITCH] = "0"
        try:
            self._process.start()
        finally:
            os.environ.pop(SWITCH) if before is None else os.environ.update({SWITCH: before})
        self.dtype, self.batch_size = self._receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def error(self) -> float:
        error: float = self._call("error")
        return error

    def block(self, steps: int) -> Block:
        block: Block = self._call("block", steps)
        return block

    def _call(self, name: str, *args: int) -> Any:
        self._pipe.send((name, args))
        return self._receive()

    def _receive(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, case: Case, settings: Settings, threads: int) -> None:
    """Answer calls until the other end of the pipe is closed."""
    torch.set_num_threads(threads)
    try:
        workload = start(case, settings)
        pipe.send((workload.dtype, workload.batch_size))
        while True:
            name, args = pipe.recv()
            pipe.send(getattr(workload, name)(*args))
    except EOFError:
        return
    except Exception as error:  # whatever it is, the process that waits for an answer has to know
        pipe.send(error)
