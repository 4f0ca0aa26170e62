"""The ``model-factory`` command."""
