"""The client side of the wire: channel, blob transfer, and the remote factory."""
