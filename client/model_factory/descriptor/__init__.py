"""Descriptors: a tree of modules as plain data, and the weights that go with it."""
