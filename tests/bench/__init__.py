"""Benchmarks: the cost of each part, compared with a simple program that runs in turn with it on the same machine."""
