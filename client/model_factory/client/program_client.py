"""Programs for call forms that the manifest had none for: from the cache, else recorded by the server."""

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
from model_factory.program.call_signature import FORWARD, Read, RecordedProgram, call_signature, under_autocast
from model_factory.program.example_call import encode_call
from model_factory.program.ir import Outcome
from model_factory.program.torch_names import torch_name
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2, program_pb2, wire

log = logging.getLogger(__name__)


class RemotePrograms:
    """A ``ProgramRecorder`` for the modules of one built component."""

    def __init__(
        self, connection: Connection, cache: Store, component: Component, build: BuildReference, programs: Blob
    ) -> None:
        """``build`` is the build that the modules come from, and ``programs`` what that build recorded."""
        self._connection = connection
        self._cache = cache
        self._component = component
        self._build = build
        self._key = _cache_key(connection.server_identity(), component, build, programs)
        self._read: tuple[Any, Programs] = (None, ())

    def __deepcopy__(self, _memo: Mapping[int, Any]) -> RemotePrograms:
        return self

    def known(self, path: str) -> list[RecordedProgram]:
        """Return the programs of a module that were recorded for any process of this node."""
        try:
            return [recorded for at, recorded in self._recorded() if at == path]
        except StoreError as error:  # training goes on
            log.warning("programs of %s cannot be looked for on this node: %s", path, error)
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
        """Return a program for a call, and keep it for every later process on this node.

        Raises:
            CallSignatureError: the server cannot be reached, or the forward refuses the call.
            OutdatedBuildError: the server builds another module by now: its code, or a file that the build read,
                has changed.
            NotPortableError: the forward cannot be written down for this call.
        """
        # Under autocast the inputs' dtype may differ from the parameters'; the server records without autocast.
        cast = dtype if under_autocast(call_signature(arguments)[1]) else None
        call = encode_call(arguments, cast, outcomes, method, reads)
        programs = decode_programs(self._ask(path, call, training, dtype))
        if [(at, item.method) for at, item in programs] != [(path, method)]:
            raise ServerError(f"the server at {self._connection.address} answered with programs for something else")
        try:
            self._keep(programs)
        except StoreError as error:  # training goes on
            log.warning("the program of %s is not kept for other processes of this node: %s", path, error)
        return programs[0][1]

    def _keep(self, programs: Programs) -> None:
        with self._cache.locked(self._key):
            recorded = self._recorded()
            if programs[0] not in recorded:
                self._cache.put_record(self._key, {"programs": encode_programs(recorded + programs).decode()})

    def _recorded(self) -> Programs:
        document = self._cache.record(self._key)
        if document is not None and document == self._read[0]:  # many modules ask, and few processes record
            return self._read[1]
        try:
            programs = () if document is None else decode_programs(document["programs"].encode())
        except (FormatError, AttributeError, KeyError, TypeError):  # damaged: it is written anew
            return ()
        self._read = (document, programs)
        return programs

    def _ask(self, path: str, call: bytes, training: tuple[tuple[str, bool], ...], dtype: torch.dtype | None) -> bytes:
        request = program_pb2.RecordProgramRequest(
            component=build_pb2.Component(name=self._component.name, config_json=self._component.config.wire),
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
                f"{self._component.name}: {path} is called in a form that has no program yet, and the server that "
                f"could record one is gone ({error}). Remedy: make this call once while the server is up"
            ) from error
        data: bytes = response.programs_json
        return data


def _cache_key(server: str, component: Component, build: BuildReference, programs: Blob) -> str:
    """Key of a component's programs in the node's cache: who recorded them, for which build, of which config.

    Everything in a manifest is public, and a hostile server can copy all of it. ``server`` keeps the programs of one
    server from the modules of another.
    """
    identity, config = build.identity, component.config
    parts = [server, identity.backend, identity.code_digest, identity.torch_version, identity.device_kind]
    parts += [str(identity.format_version), build.architecture_key, build.descriptor.digest, build.dtype]
    return digest_of(encode_document(["recorded", *parts, programs.digest, config.digest, config.order_digest]))
