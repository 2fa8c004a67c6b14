"""``python -m benchmarks``: this package beside what else one could use, in one run."""
