"""Random draws as pure functions of a key, such as (seed, stage, class or batch, iteration).

There is no state, so a draw does not depend on earlier draws, on the process, or on restarts. Uniform numbers come
from SHA-256 and are the same on every platform and with every library version.
"""

import hashlib
import operator
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Key = int | str


def digest(*key: Key) -> bytes:
    """SHA-256 of the key, 32 bytes. ("a", 1), ("a1",) and ("a", "1") are different keys.

    NumPy integers and strings are equivalent to Python's.
    """
    plain = tuple(str(part) if isinstance(part, str) else operator.index(part) for part in key)
    return hashlib.sha256(repr(plain).encode()).digest()


def uniforms(*key: Key) -> Iterator[float]:
    """An endless stream of float64 numbers in [0, 1)."""
    block = 0
    while True:
        for word in struct.unpack("<4Q", digest(*key, "block", block)):
            yield (word >> 11) * 2.0**-53
        block += 1


def torch_seed(*key: Key) -> int:
    """A 63-bit seed."""
    return int.from_bytes(digest(*key)[:8], "little") >> 1


def generator(*key: Key) -> torch.Generator:
    """A CPU generator seeded by the key."""
    return torch.Generator().manual_seed(torch_seed(*key))


def permutation(n: int, *key: Key) -> np.ndarray:
    """A permutation of 0..n-1, int64."""
    order: np.ndarray = torch.randperm(n, generator=generator(*key)).numpy()
    return order


@contextmanager
def seeded(*key: Key) -> Iterator[None]:
    """Seed the generators of torch (CPU and current GPU) and Python by the key; restore their state on exit."""
    python_state = random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        seed = torch_seed(*key)
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
