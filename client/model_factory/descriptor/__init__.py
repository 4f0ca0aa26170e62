"""Descriptors: a tree of modules as plain data, and the file of the tree's weights."""
