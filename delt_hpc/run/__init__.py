"""A run: its folder, timing, progress, and a request to stop."""
