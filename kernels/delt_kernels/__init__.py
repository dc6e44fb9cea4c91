"""Fused operators of a recovery iteration, each in PyTorch and in Triton: docs/kernels.md.

One file for each operator: bn_stats, bn_relu_maxpool, bn_distance, crop_resize, adam. The teacher rewritten to them:
teacher. Shared by them: dispatch, layout, segments, relu_bitmask.
"""
