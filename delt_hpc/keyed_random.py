"""Random draws as pure functions of a key: (seed, stage, class or batch, iteration).

Nothing here keeps a state, so a draw does not depend on what was drawn before it, in which process, or how often the
work was restarted. Uniform numbers come straight from SHA-256 and are the same on every platform and library version.
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
    """32 bytes that stand for the key; keys of different types or splits never collide.

    A NumPy integer counts as the number it is, whatever its `repr` is.
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
    """A CPU generator that starts at the key."""
    return torch.Generator().manual_seed(torch_seed(*key))


def permutation(n: int, *key: Key) -> np.ndarray:
    """A permutation of 0..n-1, int64."""
    order: np.ndarray = torch.randperm(n, generator=generator(*key)).numpy()
    return order


@contextmanager
def seeded(*key: Key) -> Iterator[None]:
    """The generators of torch (CPU and the GPU in use) and Python start at the key inside and are put back after."""
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
