"""Layers and checks for several blocks."""
