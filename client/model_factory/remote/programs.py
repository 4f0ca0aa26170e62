"""Programs for call forms that the manifest had none for: from the cache, else recorded by the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_factory.components import Component
from model_factory.descriptor.codec import decode_programs
from model_factory.digest import digest_of
from model_factory.documents import encode_document
from model_factory.errors import CallFormError, ServerError, UnavailableError
from model_factory.graph.call_example import encode_call
from model_factory.graph.call_form import Recorded
from model_factory.remote.connection import Connection
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2, program_pb2


class RemotePrograms:
    """A ``ProgramSource`` for the modules of one built component."""

    def __init__(self, connection: Connection, cache: Store, component: Component, dtype: str, descriptor: Blob) -> None:
        self._connection = connection
        self._cache = cache
        self._component = component
        self._dtype = dtype
        self._descriptor = descriptor

    def __deepcopy__(self, _memo: Mapping[int, Any]) -> RemotePrograms:
        return self

    def record(self, path: str, arguments: Mapping[str, Any], training: tuple[tuple[str, bool], ...]) -> Recorded:
        """Return a program for a call, and keep it for every later process on this node.

        Raises:
            CallFormError: the server cannot be reached and the cache has none, or the forward refuses the call.
            NotPortableError: the forward cannot be written down for this call.
        """
        call = encode_call(arguments)
        key = digest_of(encode_document([self._descriptor.digest, path, call.decode(), [list(item) for item in training]]))
        known = self._cache.record(key)
        data = known["programs"].encode() if known is not None else self._ask(path, call, training)
        programs = decode_programs(data)
        if len(programs) != 1 or programs[0][0] != path:
            raise ServerError(f"the server at {self._connection.address} answered with programs for something else")
        if known is None:
            self._cache.put_record(key, {"programs": data.decode()})
        return programs[0][1]

    def _ask(self, path: str, call: bytes, training: tuple[tuple[str, bool], ...]) -> bytes:
        request = program_pb2.RecordProgramRequest(
            component=build_pb2.Component(name=self._component.name, config_json=self._component.config.wire),
            dtype=self._dtype,
            module_path=path,
            call_json=call,
            training=dict(training),
        )
        try:
            with self._connection.errors({self._component.name: self._component.config}):
                response = self._connection.stub.RecordProgram(request, timeout=self._connection.timeout)
        except UnavailableError as error:
            raise CallFormError(
                f"{self._component.name}: {path} is called in a form that has no program yet, and the server that could "
                f"record one is gone ({error}). Remedy: make this call once while the server is up"
            ) from error
        data: bytes = response.programs_json
        return data
