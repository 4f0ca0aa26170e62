"""Observability: log lines, metrics, traces, and the RPC in progress."""
