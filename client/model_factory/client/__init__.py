"""The client of a build service: factory, connection, credentials, blob transfer, retries."""
