"""The fork server in use: replaced after a crash of a worker, and after its own end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable

from model_factory_server.builds.fork_server import ForkServer
from model_factory_server.worker.sandbox import kill_children

log = logging.getLogger(__name__)

_FORGIVEN_SECONDS = 600.0  # until a crash has no more effect on the time of the next replacement
_REPLACED_AT_ONCE = 5  # crashes without a delay of the replacement
_MAX_DELAY = 60.0


class CurrentForkServer:
    """The fork server in use.

    All workers of a fork server have one layout of memory, and a crash can tell a client parts of the layout. After a
    crash a new fork server is started. The client of the crash waits for the new fork server; all other clients use the
    old one until the new one is ready. Many crashes delay the replacement, up to a minute, so that a client cannot keep
    the server busy with replacements. For use in a single event loop.
    """

    def __init__(self, start: Callable[[], ForkServer], on_replacement: Callable[[], None] = lambda: None) -> None:
        """Start a fork server with ``start``; ``on_replacement`` is called for each later one in use."""
        self._start = start
        self._on_replacement = on_replacement
        self._current = start()
        self._starting: ForkServer | None = None
        self._retired: list[ForkServer] = []
        self._waiting_clients: set[str] = set()
        self._replacement: asyncio.Task[None] | None = None
        self._crashes: list[float] = []
        self._is_closed = False

    def is_ready_for(self, clients: Collection[str]) -> bool:
        """Whether one of the clients of a build may use the current fork server; true for a build without clients."""
        return not clients or not self._waiting_clients.issuperset(clients)

    async def wait_for(self, clients: Collection[str]) -> None:
        """Wait until one of the clients of a build may use the current fork server."""
        while not self.is_ready_for(clients) and self._replacement is not None:
            await asyncio.wait({self._replacement})

    def get(self) -> ForkServer:
        """Return the current fork server, after a replacement if the process has ended."""
        self.replace_if_ended()
        return self._current

    def replace_if_ended(self) -> None:
        """Start another fork server if the current one has ended, and end what has outlived the current one."""
        if self._current.has_ended and not self._is_closed:
            log.error("the fork server has ended; starting another one")
            self._switch(self._start())

    def note_crash(self, crashed: ForkServer, clients: Iterable[str]) -> None:
        """Have a fork server replaced after a crash of a worker; ``clients`` of the build wait for the new one."""
        if crashed is not self._current:
            return
        self._waiting_clients.update(clients)
        if self._replacement is None:
            now = time.monotonic()
            self._crashes = [at for at in self._crashes if now - at < _FORGIVEN_SECONDS]
            delay = min(_MAX_DELAY, 2.0 ** max(0, len(self._crashes) - _REPLACED_AT_ONCE + 1) - 1.0)
            self._crashes.append(now)
            log.warning("a worker process crashed; a new fork server starts in %g seconds", delay)
            self._replacement = asyncio.create_task(self._replace(delay))

    def close(self) -> None:
        """End the fork servers and all processes below; no other fork server starts afterwards."""
        self._is_closed = True
        if self._replacement is not None:
            self._replacement.cancel()
        for server in self._all():
            server.close()

    async def _replace(self, delay: float) -> None:
        while True:
            await asyncio.sleep(delay)
            try:
                self._starting = self._start()
                if await asyncio.to_thread(self._starting.wait_until_ready):
                    break
            except OSError:
                log.exception("a new fork server cannot be started; the old one stays in use")
            else:
                log.error("a new fork server ended at its start; the old one stays in use")
            delay = _MAX_DELAY
        started, self._starting, self._replacement = self._starting, None, None
        self._switch(started)

    def _switch(self, started: ForkServer) -> None:
        """Use a started fork server, and retire the old one."""
        self._on_replacement()
        self._current.retire()
        self._retired = [server for server in [*self._retired, self._current] if not server.has_ended]
        self._current = started
        self._waiting_clients.clear()
        # Processes of an ended fork server are children of this process now.
        while kill_children(keeping=[server.pid for server in self._all()]):
            pass

    def _all(self) -> list[ForkServer]:
        return [self._current, *self._retired, *([] if self._starting is None else [self._starting])]
