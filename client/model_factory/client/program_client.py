"""Programs for call signatures without a program in the build: from the node cache, else recorded by the server."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from model_factory.client.builds.trusted_source import SourceAtCall, SourceClient
from model_factory.client.connection import Connection
from model_factory.config.request import Component
from model_factory.descriptor.codec import Programs, decode_descriptor, decode_programs, encode_programs
from model_factory.digest import digest_of
from model_factory.documents import encode_document
from model_factory.environment import SHARE_VALUES
from model_factory.errors import AccessError, CallSignatureError, FormatError, ServerError, StoreError, UnavailableError
from model_factory.identity import BuildReference
from model_factory.program.arguments.differences import differing_values
from model_factory.program.call_signature import (
    CallSignature,
    call_signature,
    match_call_signature,
    under_autocast,
    without_values,
)
from model_factory.program.example_call import encode_call, encode_call_without_values, is_integral
from model_factory.program.ir import Outcome
from model_factory.program.recorded_program import FORWARD, Read, RecordedProgram
from model_factory.program.runtime.size_replay import Built, follows_from_sizes
from model_factory.program.torch_names import torch_name
from model_factory.store import Blob, Store
from model_factory.v1 import program_pb2, wire
from model_factory.wording import listed

log = logging.getLogger(__name__)

_SERVERS_CHOICE = (
    "constants and integers were the server's choice, since this trainer sends no values. Remedy: if the trainer's own "
    f"values fit, RemoteModelFactory(share_values=True) or {SHARE_VALUES}=1"
)

_MAX_KEPT = 1000
"""Programs of a build in the node cache; the latest are kept."""


class ProgramClient:
    """The ``ProgramRecorder`` of the modules of one built component; records programs on the server."""

    def __init__(  # noqa: PLR0913  the build, and all that a server is asked through
        self,
        connection: Connection,
        cache: Store,
        component: Component,
        build: BuildReference,
        programs: Blob,
        built: Built,
        source: SourceClient,
        *,
        server: str,
        share_values: bool = False,
    ) -> None:
        """Prepare for the modules of a build.

        Args:
            connection: Connection to the server.
            cache: The node cache.
            component: The component of the modules.
            build: The build of the modules.
            programs: The blob of programs from the build.
            built: What the server has described of the component.
            source: The source code of the server.
            server: Digest of the identity of the server that has built the component.
            share_values: Whether the server may learn values of calls.
        """
        self._connection = connection
        self._share_values = share_values
        self._built = built
        self._source = source
        self._cache = cache
        self._component = component
        self._build = build
        self._server = server
        self._key = _cache_key(self._server, component, build, programs)
        self._decoded: tuple[Any, Programs] = (None, ())  # the last record read, and the programs in the record
        self._recorded: Programs = ()  # in this process

    def __deepcopy__(self, _memo: Mapping[int, Any]) -> ProgramClient:
        return self

    def known(self, path: str) -> list[RecordedProgram]:
        """Return the programs of a module that any process of this node has had recorded."""
        try:
            cached = self._cached_programs()
        except StoreError as error:  # training goes on
            log.warning("cannot look up programs of %s in the node cache: %s", path, error)
            cached = ()
        return [recorded for at, recorded in (*cached, *self._recorded) if at == path]

    def record(
        self,
        path: str,
        arguments: Mapping[str, Any],
        training: tuple[tuple[str, bool], ...],
        dtype: torch.dtype | None,
        outcomes: tuple[Outcome, ...] = (),
        method: str = FORWARD,
        reads: Sequence[Read] = (),
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> RecordedProgram | SourceAtCall:
        """Have the server record a program for a call; cache the program for every later process of this node.

        Where no program is possible, a server that shares source returns the module as source code.

        Raises:
            CallSignatureError: the server cannot be reached, the forward refuses the call, or the server needs values
                that the trainer does not share.
            OutdatedBuildError: the server now builds another module: the code, or a file read by the build, changed.
            NotPortableError: the forward cannot be recorded for this call.
        """
        given, leaves = call_signature(arguments)
        # Under autocast the dtypes of inputs and parameters can differ; the server records without autocast.
        cast = dtype if under_autocast(leaves) else None
        if self._share_values:
            call = encode_call(arguments, cast, outcomes, method, reads)
        else:
            self._refuse_values(path, outcomes, reads)
            describe = functools.partial(encode_call_without_values, dtype=cast)
            call = describe(arguments, method=method, defaults=defaults)
            if not follows_from_sizes((path, call), describe, self._built):
                raise self._needs_values(path, "sizes or a choice of blocks that follow from values")
        try:
            response = self._record_on_server(path, call, training, dtype)
        except CallSignatureError as error:
            left_out = without_values(given, defaults) != given or any(map(is_integral, leaves))
            if self._share_values or not left_out or isinstance(error.__cause__, UnavailableError):
                raise
            raise type(error)(f"{error} ({_SERVERS_CHOICE})") from error  # also the class of the forward's error
        programs = self._programs_of(path, method, response)
        self._recorded += programs
        try:
            self._cache_programs(programs)
        except (AccessError, StoreError) as error:  # training goes on
            log.warning("cannot cache the program of %s for other processes of this node: %s", path, error)
        if response.source_descriptor_json:
            descriptor = decode_descriptor(response.source_descriptor_json)
            return SourceAtCall(self._source, self._component.name, path, descriptor)
        return self._chosen(path, [item for at, item in programs if (at, item.method) == (path, method)], given)

    def _programs_of(self, path: str, method: str, response: program_pb2.RecordProgramResponse) -> Programs:
        """Decode programs of the called method, and of the forwards of blocks inside the called module."""
        programs = decode_programs(response.programs_json)
        below = f"{path}." if path else ""
        called = [(at, item.method) == (path, method) for at, item in programs]
        inner = [at != path and at.startswith(below) and item.method == FORWARD for at, item in programs]
        if any(called) == bool(response.source_descriptor_json) or not all(
            one or other for one, other in zip(called, inner, strict=True)
        ):
            raise ServerError(f"the server at {self._connection.address} sent programs of another module or method")
        return programs

    def _chosen(self, path: str, programs: Sequence[RecordedProgram], given: CallSignature) -> RecordedProgram:
        """Return the program for a call; without values, the server has recorded other truth values, too."""
        fitting = (item for item in programs if match_call_signature(item.call_signature, given) is not None)
        chosen = next(fitting, programs[0])
        differing = [] if self._share_values else differing_values(chosen.call_signature, given)
        if differing:
            raise self._needs_values(path, f"the value of {listed(differing)}")
        return chosen

    def _refuse_values(self, path: str, outcomes: tuple[Outcome, ...], reads: Sequence[Read]) -> None:
        if reads:
            raise self._needs_values(path, f"the attribute {listed([f'{at}.{name}' for at, name, _ in reads])}")
        if outcomes:
            raise self._needs_values(path, "the outcome of a decision by the values of a tensor")

    def _needs_values(self, path: str, what: str) -> CallSignatureError:
        return CallSignatureError(
            f"{self._component.name}: no program exists for this call of {path or 'the model'}, and the server needs "
            f"{what} to record a program. This trainer sends no values. Remedy: RemoteModelFactory(share_values=True) "
            f"or {SHARE_VALUES}=1 for a server that may learn values; or record the call at the build, with "
            "example_inputs() of the block or the signature of the config (docs/portability.md)"
        )

    def _cache_programs(self, programs: Programs) -> None:
        if self._connection.server_identity() != self._server:  # another user has taken a port of this machine
            return
        with self._cache.locked(self._key):
            recorded = self._cached_programs()
            new = tuple(item for item in programs if item not in recorded)
            if new:
                kept = (recorded + new)[-_MAX_KEPT:]
                self._cache.put_record(self._key, {"programs": encode_programs(kept).decode()})

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
    ) -> program_pb2.RecordProgramResponse:
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
                response: program_pb2.RecordProgramResponse = self._connection.call("RecordProgram", request)
        except UnavailableError as error:
            raise CallSignatureError(
                f"{self._component.name}: no program exists for this call signature of {path}, and the server that "
                f"records programs cannot be reached ({error}). Remedy: make this call once while the server is up"
            ) from error
        return response


def _cache_key(server: str, component: Component, build: BuildReference, programs: Blob) -> str:
    """Key of a component's programs in the node cache: digest over server, build and config.

    Everything in a manifest is public, so a hostile server can copy a manifest. The identity of the server in the key
    keeps the programs of one server from the modules of another server.
    """
    identity, config = build.identity, component.config
    parts = [server, identity.backend, identity.code_digest, identity.torch_version, identity.device_kind]
    parts += [str(identity.format_version), build.architecture_key, build.descriptor.digest, build.dtype]
    return digest_of(encode_document(["recorded", *parts, programs.digest, config.digest, config.order_digest]))
