"""The frozen teacher: any classifier with BatchNorm2d, rewritten to the fused operators."""
