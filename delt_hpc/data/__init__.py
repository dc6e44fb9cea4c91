"""Data sets: their specs, their image files, and loaders for them."""
