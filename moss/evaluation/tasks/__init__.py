"""Benchmarks: what is scored, against what, and which rows its table has."""
