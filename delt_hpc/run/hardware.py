"""What the processor can do."""

from functools import cache

import torch


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 numbers in hardware (AVX512_BF16 or AMX).

    oneDNN emulates bfloat16 on other processors, which is slower than float32.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
