"""A program is replayed beside the original forward and compared bit for bit."""
