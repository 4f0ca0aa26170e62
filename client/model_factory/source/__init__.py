"""Source code from a server: bundles of files, lock files with trusted digests, and the loader for trusted code."""
