"""Builds are queued, found in the store, or given to a worker process."""
