"""Layers and checks that several blocks share."""
