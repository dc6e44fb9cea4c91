"""The operators of a recovery iteration, each in PyTorch and in Triton: docs/kernels.md.

Operators: bn_stats, bn_relu_maxpool, bn_distance, crop_resize, adam. `teacher` rewrites a classifier to use them.
"""
