"""Parsing of configs of untrusted peers, in processes of their own."""
