"""Scores of the training images, the ranking table, and the selection of images from it."""
