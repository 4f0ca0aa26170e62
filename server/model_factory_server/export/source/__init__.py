"""Modules sent as source code: their classes, and the bundle of source files."""
