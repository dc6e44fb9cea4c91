"""The distilled data set: its manifest and its card."""
