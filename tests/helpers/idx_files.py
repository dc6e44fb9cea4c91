"""Files in MNIST's idx format."""

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = np.asarray(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()
