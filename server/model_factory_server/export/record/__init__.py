"""Runs a forward on fake tensors, in several modes and dtypes, and makes the runs one recorded program."""
