"""Weights of files as the first weights of a built model."""
