"""Generated stubs of ``proto/model_factory/v1``, and ``wire``, which maps them to the types of this package."""
