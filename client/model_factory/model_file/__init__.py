"""Model files: models with descriptors, programs and weights in one file, loaded without a server."""
