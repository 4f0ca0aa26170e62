"""A forward runs once on fake tensors and becomes a program."""
