"""Benchmarks: how fast this machine computes the steps of a run, and whether the results are right."""
