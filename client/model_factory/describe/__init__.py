"""Describes a live module: tables of its modules and tensors."""
