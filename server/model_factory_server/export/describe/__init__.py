"""A live module becomes a descriptor."""
