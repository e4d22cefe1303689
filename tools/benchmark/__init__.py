"""Benchmarks, part of a checkout: `python tools/benchmark.py` is their door."""
