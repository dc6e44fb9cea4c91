"""Removal of what a finished run does not need: copies that are also elsewhere, and files that can be made again."""
