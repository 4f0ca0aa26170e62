"""Runs programs: the interpreter, and the modules with a program as forward."""
