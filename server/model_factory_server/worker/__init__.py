"""The worker process: one job in a sandbox."""
