"""The conditions under which a recorded program holds: sizes, attributes, arguments that are not read."""
