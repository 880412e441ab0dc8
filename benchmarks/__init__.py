"""Benchmarks: whole jobs and micro benches, run with `python -m benchmarks`."""
