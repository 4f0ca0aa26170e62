"""The jobs of a worker: a module for each kind of task."""
