"""Scores of the training images, their table, and the choice of images by them."""
