"""The trainer's side of the RPCs: connection, factory, blob transfer, retries."""
