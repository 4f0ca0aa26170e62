"""The build service: finds results in the store, and schedules worker processes for the others."""
