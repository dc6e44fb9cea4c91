"""Downloads: where they are allowed, and how long they may be silent."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "DELT_DOWNLOADS"  # 0: this process downloads nothing, as in a job on a node without a network
TIMEOUT_SECONDS = 30.0


def allowed() -> bool:
    """Whether this process may download."""
    return os.environ.get(VARIABLE) != "0"


@contextmanager
def timeout() -> Iterator[None]:
    """Inside, a connection that is silent for TIMEOUT_SECONDS fails: some networks drop all packets silently."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
