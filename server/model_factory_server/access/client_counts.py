"""Counts of what clients have in use: few for one client, and more for all clients."""

from __future__ import annotations

from collections import Counter


class ClientCounts:
    """Counts by client and in total, below two bounds. Not safe for use in several threads without a lock.

    Example:
        >>> watches = ClientCounts(most=3, most_of_client=2)
        >>> [watches.add("first client") for _ in range(3)], watches.add("second client")
        ([True, True, False], True)
        >>> watches.remove("first client")
        >>> watches.of("first client"), watches.total
        (1, 2)
    """

    def __init__(self, most: int, most_of_client: int) -> None:
        """Count at most ``most`` in total, and at most ``most_of_client`` of one client."""
        self.most = most
        """Upper bound of all clients."""
        self.most_of_client = most_of_client
        """Upper bound of one client."""
        self._counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """The count of all clients."""
        return self._counts.total()

    def of(self, client: str) -> int:
        """Return the count of a client."""
        return self._counts[client]

    def add(self, client: str) -> bool:
        """Count one more of a client; return False, without an effect, at a bound."""
        if self.of(client) >= self.most_of_client or self.total >= self.most:
            return False
        self._counts[client] += 1
        return True

    def remove(self, client: str) -> None:
        """Count one less of a client."""
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]  # addresses of peers that are gone take no memory
