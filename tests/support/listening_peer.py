"""A peer that notes all bytes: an HTTP proxy that accepts every CONNECT, and an HTTP/2 server without responses."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"


class ListeningPeer:
    """Accepts connections, completes the handshake of HTTP/2, and keeps what clients send."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._received: list[bytes] = []
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"{host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def received(self) -> bytes:
        return b"".join(self._received)

    @property
    def has_token(self) -> bool:
        """Whether a client has sent a token. HPACK writes short names as they are, and values compressed or not."""
        return b"authorization" in self.received or b"canary" in self.received

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._listen, args=(self._listener.accept()[0],), daemon=True).start()

    def _listen(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            self._received.append(client.recv(65536))
            if self._received[-1].startswith(b"CONNECT"):
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            client.sendall(_SETTINGS)
            while data := client.recv(65536):
                self._received.append(data)
