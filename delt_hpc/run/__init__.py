"""A run: its folder, timing records, progress output and stopping on a signal."""
