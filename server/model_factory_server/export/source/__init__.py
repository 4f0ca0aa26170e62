"""Modules that no program covers: their classes and the bundle of source files."""
