"""The frozen teacher: any classifier with BatchNorm2d, rewritten to use the operators."""
