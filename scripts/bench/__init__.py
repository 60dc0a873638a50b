"""Benchmarks: both sides in one run, the last line printed is JSON."""
