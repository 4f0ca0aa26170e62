"""A client that speaks HTTP/2 by hand: it sends as much as the server's windows allow, and reads what it wants."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
ACK = 1
DEFAULT_WINDOW = 65535
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 4, 5


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """Return one frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header field without compression."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_head(path: str, **extra: str) -> bytes:
    """Return the header block of a gRPC request; ``grpc_encoding="gzip"`` adds a field."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers"}
    fields |= {"content-type": "application/grpc"} | {name.replace("_", "-"): value for name, value in extra.items()}
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())


def message(data: bytes, size: int | None = None, *, compressed: bool = False) -> bytes:
    """Return a gRPC message that claims to have ``size`` bytes."""
    return struct.pack(">BI", compressed, len(data) if size is None else size) + data


class Http2Client:
    """A connection; a thread reads the frames, and grants no window for data of streams unless ``reads``."""

    def __init__(self, address: str, source: str = "127.0.0.1", *, reads: bool = False) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60, source_address=(source, 0))
        self.ended: dict[int, bytes] = {}
        """The last header block of every stream that has ended; empty after RST_STREAM."""
        self.received = 0
        """Bytes of data."""
        self.closed = False
        self._reads = reads
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._window = DEFAULT_WINDOW
        self._windows: dict[int, int] = {}
        self._initial = DEFAULT_WINDOW
        self._frame_size = 16384
        self._next = 1
        self._write(PREFACE + frame(SETTINGS) + frame(WINDOW_UPDATE, struct.pack(">I", 2**31 - 1 - DEFAULT_WINDOW)))
        threading.Thread(target=self._read, daemon=True).start()

    def begin(self, path: str, **extra: str) -> int:
        """Begin a request; return the number of its stream."""
        with self._changed:
            stream, self._next = self._next, self._next + 2
            self._windows[stream] = self._initial
        self._write(frame(HEADERS, request_head(path, **extra), END_HEADERS, stream))
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False, seconds: float = 60.0) -> int:
        """Send data until the windows stay closed for ``seconds``; return the number of bytes sent."""
        sent = 0
        while sent < len(data):
            with self._changed:
                if not self._changed.wait_for(lambda: self._room(stream) or self._is_over(stream), seconds):
                    break
                if self._is_over(stream):
                    break
                size = min(self._frame_size, self._room(stream), len(data) - sent)
                self._window -= size
                self._windows[stream] -= size
            is_last = end and sent + size == len(data)
            if not self._write(frame(DATA, data[sent : sent + size], END_STREAM if is_last else 0, stream)):
                break
            sent += size
        return sent

    def call(self, path: str, data: bytes, seconds: float = 60.0) -> bytes:
        """Send a request; return the last header block of the answer, empty without an answer."""
        stream = self.begin(path)
        self.send(stream, message(data), end=True, seconds=seconds)
        self.wait(stream, seconds)
        return self.ended.get(stream, b"")

    def wait(self, stream: int, seconds: float = 60.0) -> bool:
        """Wait for the end of a stream; return whether it has ended."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_over(stream), seconds)

    def reset(self, stream: int) -> None:
        """Give a stream up."""
        self._write(frame(RST_STREAM, struct.pack(">I", 8), 0, stream))

    def write(self, data: bytes) -> bool:
        """Write frames; return False if the connection is closed."""
        return self._write(data)

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _room(self, stream: int) -> int:
        return max(0, min(self._window, self._windows[stream]))

    def _is_over(self, stream: int) -> bool:
        return self.closed or stream in self.ended

    def _write(self, data: bytes) -> bool:
        with self._writing, suppress(OSError):
            self.socket.sendall(data)
            return True
        return False

    def _read(self) -> None:
        with suppress(OSError, ValueError), self.socket.makefile("rb") as frames:
            while len(head := frames.read(9)) == 9:
                payload = frames.read(int.from_bytes(head[:3], "big"))
                with self._changed:
                    self._take(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
                    self._changed.notify_all()
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._settle(payload)
        elif kind == PING and not flags & ACK:
            self._write(frame(PING, payload, ACK))
        elif kind == WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream:
                self._windows[stream] = self._windows.get(stream, 0) + more
            else:
                self._window += more
        elif kind == DATA:
            self.received += len(payload)
            if self._reads and payload and not flags & END_STREAM:
                self._write(frame(WINDOW_UPDATE, struct.pack(">I", len(payload)), 0, stream))
        elif kind in {HEADERS, RST_STREAM} and (kind == RST_STREAM or flags & END_STREAM):
            self.ended.setdefault(stream, payload if kind == HEADERS else b"")

    def _settle(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            name, value = struct.unpack_from(">HI", payload, at)
            if name == _INITIAL_WINDOW_SIZE:
                self._windows = {stream: window + value - self._initial for stream, window in self._windows.items()}
                self._initial = value
            elif name == _MAX_FRAME_SIZE:
                self._frame_size = value
        self._write(frame(SETTINGS, flags=ACK))
