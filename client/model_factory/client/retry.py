"""How long what a server's end broke off is tried again: long enough for the server to be restarted."""

from __future__ import annotations

import time

import grpc

RESUME_SECONDS = 20.0
"""Waited in all without progress; a restart of a server takes less."""

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 2.0
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # the latter by a server that stops


class Backoff:
    """The waits between one try and the next, which grow."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start over: there was progress."""
        self._left = RESUME_SECONDS
        self._next = _FIRST_WAIT_SECONDS

    def wait(self) -> bool:
        """Wait before another try; False if there is no patience left."""
        if self._left <= 0:
            return False
        time.sleep(self._next)
        self._left -= self._next
        self._next = min(2 * self._next, _LONGEST_WAIT_SECONDS)
        return True


def is_disconnect(error: grpc.RpcError) -> bool:
    """Whether a call failed because the server, or the way to it, is gone; then another try may do."""
    return error.code() in _GONE
