"""Retry back-off for RPCs interrupted by a server restart."""

from __future__ import annotations

import time

import grpc

RESUME_SECONDS = 20.0
"""Total wait without progress; a restart of a server takes less."""

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 2.0
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # CANCELLED: from a server that stops


class Backoff:
    """Growing waits between the attempts of one RPC.

    >>> backoff = Backoff()
    >>> backoff.wait()  # 0.1 s, then 0.2 s, 0.4 s and so on up to 2 s
    True
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Restart with the shortest wait, after progress."""
        self._left = RESUME_SECONDS
        self._next = _FIRST_WAIT_SECONDS

    def wait(self) -> bool:
        """Wait before the next attempt; return False, without a wait, after ``RESUME_SECONDS`` in total."""
        if self._left <= 0:
            return False
        time.sleep(self._next)
        self._left -= self._next
        self._next = min(2 * self._next, _LONGEST_WAIT_SECONDS)
        return True


def is_disconnect(error: grpc.RpcError) -> bool:
    """Whether an RPC failed because the server or the network is gone; another attempt may succeed."""
    return error.code() in _GONE
