"""The gRPC interface: servicer, interceptor, checks of requests, responses and blob streams."""
