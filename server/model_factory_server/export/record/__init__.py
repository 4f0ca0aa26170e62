"""Runs a forward on fake tensors, in several modes and dtypes, and merges the runs to a recorded program."""
