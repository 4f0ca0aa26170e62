"""Conditions of a recorded program: sizes, attributes of modules, dtypes, unread arguments."""
