"""Benchmarks: ours in turns with a peer. Run as `python tools/benchmark.py`, and the files beside this one alone."""
