"""Programs for call signatures without a program in the build: from the node cache, else recorded by the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from model_factory.client.connection import Connection
from model_factory.config.request import Component
from model_factory.descriptor.codec import Programs, decode_programs, encode_programs
from model_factory.digest import digest_of
from model_factory.documents import encode_document
from model_factory.errors import CallSignatureError, FormatError, ServerError, StoreError, UnavailableError
from model_factory.identity import BuildReference
from model_factory.program.call_signature import call_signature, under_autocast
from model_factory.program.example_call import encode_call
from model_factory.program.ir import Outcome
from model_factory.program.recorded_program import FORWARD, Read, RecordedProgram
from model_factory.program.torch_names import torch_name
from model_factory.store import Blob, Store
from model_factory.v1 import program_pb2, wire

log = logging.getLogger(__name__)


class ProgramClient:
    """The ``ProgramRecorder`` of the modules of one built component; records programs on the server."""

    def __init__(
        self, connection: Connection, cache: Store, component: Component, build: BuildReference, programs: Blob
    ) -> None:
        """``build`` identifies the build of the modules; ``programs`` is the blob of programs from the build."""
        self._connection = connection
        self._cache = cache
        self._component = component
        self._build = build
        self._key = _cache_key(connection.server_identity(), component, build, programs)
        self._decoded: tuple[Any, Programs] = (None, ())  # the last record read, and the programs in the record

    def __deepcopy__(self, _memo: Mapping[int, Any]) -> ProgramClient:
        return self

    def known(self, path: str) -> list[RecordedProgram]:
        """Return the programs of a module that any process of this node has had recorded."""
        try:
            return [recorded for at, recorded in self._cached_programs() if at == path]
        except StoreError as error:  # training goes on
            log.warning("cannot look up programs of %s in the node cache: %s", path, error)
            return []

    def record(
        self,
        path: str,
        arguments: Mapping[str, Any],
        training: tuple[tuple[str, bool], ...],
        dtype: torch.dtype | None,
        outcomes: tuple[Outcome, ...] = (),
        method: str = FORWARD,
        reads: Sequence[Read] = (),
    ) -> RecordedProgram:
        """Have the server record a program for a call; cache the program for every later process of this node.

        Raises:
            CallSignatureError: the server cannot be reached, or the forward refuses the call.
            OutdatedBuildError: the server now builds another module: the code, or a file read by the build, changed.
            NotPortableError: the forward cannot be recorded for this call.
        """
        # Under autocast the dtypes of inputs and parameters can differ; the server records without autocast.
        cast = dtype if under_autocast(call_signature(arguments)[1]) else None
        call = encode_call(arguments, cast, outcomes, method, reads)
        programs = decode_programs(self._record_on_server(path, call, training, dtype))
        if [(at, item.method) for at, item in programs] != [(path, method)]:
            raise ServerError(f"the server at {self._connection.address} sent programs of another module or method")
        try:
            self._cache_programs(programs)
        except StoreError as error:  # training goes on
            log.warning("cannot cache the program of %s for other processes of this node: %s", path, error)
        return programs[0][1]

    def _cache_programs(self, programs: Programs) -> None:
        with self._cache.locked(self._key):
            recorded = self._cached_programs()
            if programs[0] not in recorded:
                self._cache.put_record(self._key, {"programs": encode_programs(recorded + programs).decode()})

    def _cached_programs(self) -> Programs:
        document = self._cache.record(self._key)
        if document is not None and document == self._decoded[0]:  # many modules look up programs, few processes record
            return self._decoded[1]
        try:
            programs = () if document is None else decode_programs(document["programs"].encode())
        except (FormatError, AttributeError, KeyError, TypeError):  # damaged: the next program replaces the record
            return ()
        self._decoded = (document, programs)
        return programs

    def _record_on_server(
        self, path: str, call: bytes, training: tuple[tuple[str, bool], ...], dtype: torch.dtype | None
    ) -> bytes:
        request = program_pb2.RecordProgramRequest(
            component=wire.to_component(self._component),
            dtype=self._build.dtype if dtype is None else torch_name(dtype),
            module_path=path,
            call_json=call,
            training=dict(training),
            build=wire.to_reference(self._build),
        )
        try:
            with self._connection.errors({self._component.name: self._component.config}):
                response = self._connection.stub.RecordProgram(request, timeout=self._connection.timeout)
        except UnavailableError as error:
            raise CallSignatureError(
                f"{self._component.name}: no program exists for this call signature of {path}, and the server that "
                f"records programs cannot be reached ({error}). Remedy: make this call once while the server is up"
            ) from error
        data: bytes = response.programs_json
        return data


def _cache_key(server: str, component: Component, build: BuildReference, programs: Blob) -> str:
    """Key of a component's programs in the node cache: digest over server, build and config.

    Everything in a manifest is public, so a hostile server can copy a manifest. The identity of the server in the key
    keeps the programs of one server from the modules of another server.
    """
    identity, config = build.identity, component.config
    parts = [server, identity.backend, identity.code_digest, identity.torch_version, identity.device_kind]
    parts += [str(identity.format_version), build.architecture_key, build.descriptor.digest, build.dtype]
    return digest_of(encode_document(["recorded", *parts, programs.digest, config.digest, config.order_digest]))
