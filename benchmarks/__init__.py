"""Benchmarks in alternating rounds: ``python -m benchmarks``."""
