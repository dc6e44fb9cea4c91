"""Fused operators of a recovery iteration, with plain PyTorch forms: docs/kernels.md.

One operator each: bn_stats, stem, head, crop_resize, adam. Over a network: teacher. Shared: segments, forms.
"""
