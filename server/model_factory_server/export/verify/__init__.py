"""Verifies programs and source code: compares them with the original modules, bit for bit on the CPU."""
