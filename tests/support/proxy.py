"""A TCP proxy that counts, holds and cuts: what a network between a trainer and its server can do."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

_CHUNK = 64 * 1024


class Proxy:
    """Forwards connections to ``target``, which may change; bytes from the server are counted and can be held back."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.held = threading.Event()
        """Set once ``hold_after`` bytes have come from the server."""
        self._received = 0
        self._hold_after: int | None = None
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self.connections = 0
        """That were opened."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]  # noqa: UP031
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def received(self) -> int:
        """Bytes that have come from servers."""
        return self._received

    def hold_after(self, count: int) -> None:
        """Let ``count`` more bytes from the server pass, of those held back first, and then none until told again."""
        with self._lock:
            self.held.clear()
            self._hold_after = self._received + count
            before, self._released = self._released, threading.Event()
        before.set()

    def release(self) -> None:
        """Let bytes pass again."""
        with self._lock:
            self._hold_after = None
            self._released.set()

    def freeze(self) -> None:
        """Let nothing more pass on the connections that are open, and tell nobody; new ones are as ever."""
        with self._lock:
            self._frozen |= self._sockets

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            for item in self._sockets:
                _close(item)
            self._sockets.clear()

    def close(self) -> None:
        """Stop."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self.target.rpartition(":")
            try:
                server = socket.create_connection((host, int(port)), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
                self.connections += 1
            for source, sink, counted in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, counted), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(_CHUNK):
                if source in self._frozen:
                    continue
                if counted:
                    self._count(len(data))
                sink.sendall(data)
        except OSError:
            pass
        finally:
            _close(source)
            _close(sink)

    def _count(self, size: int) -> None:
        with self._lock:
            self._received += size
            if self._hold_after is None or self._received <= self._hold_after:
                return
            self.held.set()
            released = self._released
        released.wait()


def _close(item: socket.socket) -> None:
    with suppress(OSError):
        item.shutdown(socket.SHUT_RDWR)
    item.close()
