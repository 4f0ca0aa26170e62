"""Builds that a trainer repeats: pinned in a lock file, or known from the node cache."""
