"""Programs, their values and signatures as JSON data, and back."""
