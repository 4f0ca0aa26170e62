"""The worker process: a single job in a sandbox."""
