"""Keep freed memory in the process, so that a CPU run does not fault the same pages in again at every step.

glibc maps every block above a threshold (128 KiB to 32 MiB) anew and returns it to the kernel when it is freed. The
activations of a network are such blocks: each forward pass then zeroes hundreds of MiB of fresh pages. With a high
threshold they come from the heap and stay there. The price: the process keeps its peak memory until it ends.
"""

import ctypes
import os

SWITCH = "DELT_KEEP_MEMORY"  # environment variable; 0 leaves the allocator as it is

# mallopt's parameter numbers (malloc.h)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_HIGHEST = 2**31 - 1
_THRESHOLDS = (2**30, 32 * 2**20)  # bytes; glibc before 2.35 refuses more than 32 MiB


def keep_freed_memory() -> bool:
    """Set glibc's thresholds for this process and those that it forks, once, before any large allocation.

    Returns:
        whether they are set: not with DELT_KEEP_MEMORY=0, nor with a C library other than glibc.
    """
    if os.environ.get(SWITCH, "1") == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mapped = any(mallopt(_MMAP_THRESHOLD, threshold) for threshold in _THRESHOLDS)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, _HIGHEST))
