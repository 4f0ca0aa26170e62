"""The gRPC surface: servicer, interceptor, blob streams."""
