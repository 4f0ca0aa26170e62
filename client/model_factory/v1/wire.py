"""Maps protobuf messages to the types of this package and back, for client and server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from model_factory import errors
from model_factory.blocks import Block, BlockArgument
from model_factory.config.request import Component, ModelRequest
from model_factory.digest import Blob, check_digest
from model_factory.documents import FORMAT, parse_json
from model_factory.identity import BuildIdentity, BuildReference, BuiltComponent, Manifest
from model_factory.limits import MAX_WARNING_CHARS, MAX_WARNINGS
from model_factory.v1 import blob_pb2, build_pb2, capabilities_pb2
from model_factory.wording import is_printable, printable, quoted, shortened

ERROR_DOMAIN = "model-factory"

REQUEST_ID = "x-request-id"
"""Metadata key of the request id: a client's wish in the request, the server's choice in trailing metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One kind of failure, under one name in responses and metrics."""

    name: str
    """Value of ``ErrorInfo.reason``."""
    error: type[errors.ModelFactoryError]
    """Class of the error, raised on the server and again on the client."""
    code: int
    """Status code of the RPC."""
    public: str = ""
    """Message sent to clients instead of the error text; if empty, the error text is sent."""
    retry_seconds: float = 0.0
    """Time before a retry makes sense; 0: a retry is useless."""


_SEE_LOG = "the server's log has the details under the id of this request"

# Most specific first: the first matching class decides.
CATALOGUE: tuple[Reason, ...] = (
    Reason(name="CONFIG_INVALID", error=errors.ConfigError, code=code_pb2.INVALID_ARGUMENT),
    Reason(name="NOT_PORTABLE", error=errors.NotPortableError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="BUILD_FAILED", error=errors.BuildError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="BUILD_OUTDATED", error=errors.OutdatedBuildError, code=code_pb2.FAILED_PRECONDITION),
    Reason(
        name="CALL_REFUSED_NOT_IMPLEMENTED", error=errors.RefusedNotImplementedError, code=code_pb2.FAILED_PRECONDITION
    ),
    Reason(name="CALL_REFUSED_RUNTIME", error=errors.RefusedRuntimeError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="CALL_REFUSED_VALUE", error=errors.RefusedValueError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="CALL_REFUSED_TYPE", error=errors.RefusedTypeError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="CALL_REFUSED_INDEX", error=errors.RefusedIndexError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="CALL_REFUSED_KEY", error=errors.RefusedKeyError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="CALL_REFUSED_ATTRIBUTE", error=errors.RefusedAttributeError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="CALL_REFUSED_ASSERTION", error=errors.RefusedAssertionError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="CALL_REFUSED", error=errors.CallSignatureError, code=code_pb2.FAILED_PRECONDITION),
    Reason(name="CALL_FAILED", error=errors.GraphExecutionError, code=code_pb2.FAILED_PRECONDITION),
    Reason(
        name="BLOB_DAMAGED",
        error=errors.IntegrityError,
        code=code_pb2.DATA_LOSS,
        public=f"a blob in the server's store is damaged; {_SEE_LOG}",
    ),
    Reason(name="OUT_OF_RANGE", error=errors.RangeError, code=code_pb2.OUT_OF_RANGE),
    Reason(name="MALFORMED_REQUEST", error=errors.FormatError, code=code_pb2.INVALID_ARGUMENT),
    Reason(name="BUSY", error=errors.BusyError, code=code_pb2.RESOURCE_EXHAUSTED, retry_seconds=1.0),
    Reason(name="OVER_LIMIT", error=errors.LimitError, code=code_pb2.RESOURCE_EXHAUSTED),
    Reason(name="BLOB_MISSING", error=errors.MissingBlobError, code=code_pb2.NOT_FOUND),
    Reason(
        name="STORE_FAILED",
        error=errors.StoreError,
        code=code_pb2.INTERNAL,
        public=f"the server's store cannot be read or written; {_SEE_LOG}",
    ),
    Reason(name="ACCESS_DENIED", error=errors.AccessError, code=code_pb2.UNAUTHENTICATED),
    Reason(name="UNAVAILABLE", error=errors.UnavailableError, code=code_pb2.UNAVAILABLE, retry_seconds=1.0),
    Reason(name="SERVER_FAILED", error=errors.ServerError, code=code_pb2.INTERNAL),
)
"""Reason, error class, status and public message of every error that a server can send."""

INTERNAL = Reason(
    name="INTERNAL_ERROR",
    error=errors.ServerError,
    code=code_pb2.INTERNAL,
    public=f"the server failed; {_SEE_LOG}",
)
"""Reason of an error without an entry in the catalogue: a bug, so the error text stays private."""

_BY_REASON = {reason.name: reason.error for reason in (*CATALOGUE, INTERNAL)}
_SERVER_FAULTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_PATH = "config_path"
_COMPONENT = "component"
_MAX_ID = 64
_MAX_PATH_BYTES = 500
_MAX_NAME_CHARS = 255
_MAX_DETAILS = 8
_MAX_NOTICE_CHARS = 4096


def reason_of(error: BaseException) -> Reason:
    """Return the catalogue's entry for an error; ``INTERNAL`` without an entry.

    >>> reason_of(errors.BusyError("at most 8 builds wait")).name
    'BUSY'
    """
    return next((reason for reason in CATALOGUE if isinstance(error, reason.error)), INTERNAL)


def to_status(error: BaseException, component: str = "", request_id: str = "") -> grpc.Status:
    """Turn an error into the status of a failed RPC; private texts are left out."""
    reason = reason_of(error)
    message = _shortened(reason.public or (error.reason if isinstance(error, errors.LocatedError) else str(error)))
    info = error_details_pb2.ErrorInfo(
        reason=reason.name, domain=ERROR_DOMAIN, metadata={_COMPONENT: _shortened(component, 255)}
    )
    details: list[Message] = [info, error_details_pb2.RequestInfo(request_id=request_id)]
    if isinstance(error, errors.ConfigError) or (isinstance(error, errors.LocatedError) and error.path):
        path = json.dumps(error.path, ensure_ascii=False)
        if len(path.encode()) <= _MAX_PATH_BYTES:  # a longer path is left out; the message is enough
            info.metadata[_PATH] = path
        field = _shortened(errors.path_text(error.path), _MAX_PATH_BYTES)
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if reason.retry_seconds:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(reason.retry_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for any_message, detail in zip(packed, details, strict=True):
        any_message.Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=reason.code, message=message, details=packed))


def _shortened(text: str, max_bytes: int = 1000) -> str:
    """Leave out the middle of a text of more than ``max_bytes`` bytes.

    A status is sent as metadata. Clients accept 8 KiB of metadata, and a status contains a text up to three times,
    escaped.
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return data.decode()
    head, tail = data[: max_bytes * 3 // 4], data[-max_bytes // 5 :]
    return f"{head.decode(errors='ignore')} ... {tail.decode(errors='ignore')}"


def from_rpc_error(
    error: grpc.RpcError, address: str, place_of: Callable[[str, tuple[str | int, ...]], str]
) -> Exception:
    """Turn a failed RPC into an exception of this package.

    ``place_of`` returns file, line and column for a component and a path inside the component's config. The message of
    a fault of the server ends with the request id, for a search in the server's log.
    """
    code, message = error.code(), errors.safe_text(error.details() or "no details")
    if code in _SERVER_FAULTS and (request_id := _request_id(error.trailing_metadata() or ())):
        message = f"{message} (request {request_id})"
    info, path = _details(error)
    if info is None:
        return _without_details(code, message, address)
    cls = _BY_REASON.get(info.reason, errors.ServerError)
    component = shortened(info.metadata.get(_COMPONENT, ""), _MAX_NAME_CHARS)
    if issubclass(cls, errors.ConfigError) or (issubclass(cls, errors.LocatedError) and path):
        return cls(message, path=path, place=place_of(component, path) or None)
    return cls(f"component {quoted(component)}: {message}" if component else message)


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Read the request id from trailing metadata; an untrusted peer may have written a long or unprintable id."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and len(value) <= _MAX_ID and is_printable(value):
            return value
    return ""


def _without_details(code: grpc.StatusCode, message: str, address: str) -> errors.ServerError:
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:  # CANCELLED: from a server that stops
            return errors.UnavailableError(f"the model-factory server at {address} cannot be reached: {message}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.UnavailableError(f"the model-factory server at {address} did not respond in time: {message}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.ServerError(f"{address} is not a model-factory server of this version: {message}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.LimitError(f"the model-factory server at {address} refused the request: {message}")
    return errors.ServerError(f"the model-factory server at {address} failed ({code.name}): {message}")


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo | None, tuple[str | int, ...]]:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # code and details disagree: not a model-factory server
        return None, ()
    for detail in status.details[:_MAX_DETAILS] if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            return info, _decode_path(info.metadata.get(_PATH, ""))
    return None, ()


def _decode_path(text: str) -> tuple[str | int, ...]:
    """Read a config path from error details; a malformed path counts as an empty path, not as another error."""
    try:
        path = parse_json(text) if len(text) <= _MAX_PATH_BYTES else ()
    except (ValueError, RecursionError):
        return ()
    return tuple(path) if isinstance(path, list) and all(type(part) in {str, int} for part in path) else ()


def from_block(message: capabilities_pb2.Block) -> Block:
    """Read the description of a block that configs can name, as printable texts."""
    arguments = tuple(
        BlockArgument(
            name=printable(item.name),
            annotation=printable(item.annotation),
            required=item.required,
            default=printable(item.default),
        )
        for item in message.arguments
    )
    return Block(
        name=printable(message.name),
        summary=printable(message.summary),
        origin=printable(message.origin),
        tags=tuple(map(printable, message.tags)),
        arguments=arguments,
    )


def to_digest(blob: Blob) -> blob_pb2.Digest:
    """Write the identity of a blob.

    >>> from_digest(to_digest(Blob("ab" * 32, 7))).size
    7
    """
    return blob_pb2.Digest(blake3=blob.digest, size_bytes=blob.size)


def from_digest(message: blob_pb2.Digest) -> Blob:
    """Read the identity of a blob.

    Raises:
        FormatError: the digest is malformed, or the size is negative.
    """
    if message.size_bytes < 0:
        raise errors.FormatError(f"{message.size_bytes} is not the size of a blob")
    return Blob(check_digest(message.blake3), message.size_bytes)


def to_identity(identity: BuildIdentity) -> build_pb2.BuildIdentity:
    """Write the identity of a build."""
    return build_pb2.BuildIdentity(
        backend=identity.backend,
        code_digest=identity.code_digest,
        torch_version=identity.torch_version,
        device_kind=identity.device_kind,
        format_version=identity.format_version,
    )


def from_identity(message: build_pb2.BuildIdentity) -> BuildIdentity:
    """Read the identity of a build."""
    return BuildIdentity(
        backend=message.backend,
        code_digest=message.code_digest,
        torch_version=message.torch_version,
        device_kind=message.device_kind,
        format_version=message.format_version,
    )


def to_reference(reference: BuildReference) -> build_pb2.BuildReference:
    """Write a reference to a build."""
    return build_pb2.BuildReference(
        identity=to_identity(reference.identity),
        architecture_key=reference.architecture_key,
        descriptor=to_digest(reference.descriptor),
        dtype=reference.dtype,
        seed=reference.seed,
    )


def from_reference(message: build_pb2.BuildReference) -> BuildReference:
    """Read a reference to a build.

    Raises:
        FormatError: the key or the descriptor is not a digest.
    """
    return BuildReference(
        identity=from_identity(message.identity),
        architecture_key=check_digest(message.architecture_key),
        descriptor=from_digest(message.descriptor),
        dtype=message.dtype,
        seed=message.seed,
    )


def to_components(request: ModelRequest) -> list[build_pb2.Component]:
    """Write the components of a request."""
    return [to_component(component) for component in request.components]


def to_component(component: Component) -> build_pb2.Component:
    """Write one component of a request."""
    return build_pb2.Component(name=component.name, config_json=component.config.wire)


def stage_name(stage: int) -> str:
    """Return the name of a build's stage, for people.

    >>> stage_name(build_pb2.BUILD_STAGE_CONSTRUCTING)
    'constructing'
    """
    if stage not in build_pb2.BuildStage.values():  # a stage of a later server
        return "working"
    return build_pb2.BuildStage.Name(stage).removeprefix("BUILD_STAGE_").lower()


def from_manifest(message: build_pb2.Manifest, address: str) -> Manifest:
    """Read the manifest that the server at ``address`` sent.

    Raises:
        ServerError: the manifest has another format; the address may lead to another server by now.
        FormatError: a digest or a size is malformed.
    """
    found = message.identity.format_version
    if found != FORMAT:
        raise errors.ServerError(
            f"the server at {address} built with format {found}, this client reads format {FORMAT}. Remedy: install "
            "the same version on both"
        )
    return Manifest(
        identity=from_identity(message.identity),
        components=tuple(_from_built(item) for item in message.components),
        inline={item.digest.blake3: item.data for item in message.inline_blobs},
        server_version=message.server_version,
    )


def _from_built(message: build_pb2.BuiltComponent) -> BuiltComponent:
    return BuiltComponent(
        name=message.name,
        build_key=check_digest(message.build_key),
        architecture_key=check_digest(message.architecture_key),
        descriptor=from_digest(message.descriptor),
        programs=from_digest(message.programs),
        weights=from_digest(message.weights),
        checkpoint_digest=check_digest(message.checkpoint_digest) if message.checkpoint_digest else "",
        notice=printable(shortened(message.notice, _MAX_NOTICE_CHARS)),
        warnings=tuple(errors.safe_text(shortened(s, MAX_WARNING_CHARS)) for s in message.warnings[:MAX_WARNINGS]),
    )


READ_BLOB = "/model_factory.v1.ModelFactoryService/ReadBlob"
"""The method with responses written by :func:`chunk_prefix` and read by :func:`chunk_of`, to save copies."""

_CHUNK_TAG = 0x0A  # field 1, length-delimited: ReadBlobResponse.data


def chunk_prefix(length: int) -> bytes:
    """Return the bytes that turn ``length`` bytes of data (at least 1) into a serialised ``ReadBlobResponse``."""
    prefix = bytearray((_CHUNK_TAG,))
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)


def chunk_of(message: bytes) -> memoryview:
    """Return the data of a serialised ``ReadBlobResponse`` without a copy.

    >>> bytes(chunk_of(chunk_prefix(7) + b"weights"))
    b'weights'

    Raises:
        FormatError: the message has another field, or a wrong length.
    """
    view = memoryview(message)
    if not message:
        return view
    length = shift = 0
    for index in range(1, min(len(message), 6)):
        length |= (message[index] & 0x7F) << shift
        shift += 7
        if message[index] < 0x80:
            if message[0] != _CHUNK_TAG or length != len(message) - index - 1:
                break
            return view[index + 1 :]
    raise errors.FormatError("a chunk of a blob is not a ReadBlobResponse with the field data only")
