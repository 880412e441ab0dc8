"""What the job service survives; `python -m benchmarks.soak --help`."""
