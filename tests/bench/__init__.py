"""Benchmarks: how far each part is from its limit, as ratios taken in one run on one machine."""
