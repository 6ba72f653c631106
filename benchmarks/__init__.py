"""Measurements of speed: ``python -m benchmarks.training_step --help``. What they found is in docs/performance.md."""
