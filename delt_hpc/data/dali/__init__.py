"""Images read by DALI."""
