"""Programs: how any forward is written down, and the modules that run them."""
