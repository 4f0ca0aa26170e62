"""A live module becomes data: a descriptor, weights, and verified programs or source."""
