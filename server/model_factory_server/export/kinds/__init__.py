"""Kinds of blocks: equal blocks are recorded once, and inner blocks get programs of their own."""
