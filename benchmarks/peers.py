"""Servers of the alternatives: ``python -m benchmarks.peers KIND FILE`` prints a port and serves a file."""

from __future__ import annotations

import functools
import http.server
import mmap
import socket
import sys
from pathlib import Path

CHUNK_BYTES = 1 << 20


def serve_tcp(path: Path) -> None:
    """Send the file to every connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        with client, path.open("rb") as file:
            client.sendfile(file)


def serve_http(path: Path) -> None:
    """Serve the file with the HTTP server of Python."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


def serve_flight(path: Path) -> None:
    """Serve the file with Arrow Flight, mapped and sliced into batches without a copy."""
    import pyarrow  # noqa: PLC0415  optional
    from pyarrow import flight  # noqa: PLC0415

    with path.open("rb") as file:
        content = pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    schema = pyarrow.schema([("data", pyarrow.uint8())])

    class Server(flight.FlightServerBase):  # type: ignore[misc]
        def do_get(self, _context: object, _ticket: object) -> object:
            return flight.GeneratorStream(schema, self.batches())

        def batches(self) -> object:
            for start in range(0, content.size, CHUNK_BYTES):
                part = content.slice(start, min(CHUNK_BYTES, content.size - start))
                array = pyarrow.Array.from_buffers(pyarrow.uint8(), part.size, [None, part])
                yield pyarrow.RecordBatch.from_arrays([array], schema=schema)

    server = Server("grpc://127.0.0.1:0")
    print(server.port, flush=True)
    server.serve()


KINDS = {"tcp": serve_tcp, "http": serve_http, "flight": serve_flight}

if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]))
