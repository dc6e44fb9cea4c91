"""Comparisons: methods, settings and other tools' distilled sets under one teacher and one protocol, on one page."""
