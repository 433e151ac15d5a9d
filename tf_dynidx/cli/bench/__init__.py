"""Benchmarks: what the index is worth, in figures."""
