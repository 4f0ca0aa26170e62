"""Builds that a trainer repeats: pinned in a lock file."""
