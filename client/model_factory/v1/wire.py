"""The only place that maps protobuf messages to this package's types, for client and server."""

from __future__ import annotations

import json
from collections.abc import Callable

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from model_factory import errors
from model_factory.digest import check_digest
from model_factory.store import Blob
from model_factory.v1 import blob_pb2

ERROR_DOMAIN = "model-factory"

# Most specific first: an error is sent as the first class it is an instance of.
CATALOGUE: tuple[tuple[type[errors.ModelFactoryError], str, int], ...] = (
    (errors.ConfigError, "CONFIG_INVALID", code_pb2.INVALID_ARGUMENT),
    (errors.NotPortableError, "NOT_PORTABLE", code_pb2.FAILED_PRECONDITION),
    (errors.BuildError, "BUILD_FAILED", code_pb2.FAILED_PRECONDITION),
    (errors.CallFormError, "CALL_REFUSED", code_pb2.FAILED_PRECONDITION),
    (errors.IntegrityError, "BLOB_DAMAGED", code_pb2.DATA_LOSS),
    (errors.FormatError, "MALFORMED_REQUEST", code_pb2.INVALID_ARGUMENT),
    (errors.LimitError, "OVER_LIMIT", code_pb2.RESOURCE_EXHAUSTED),
    (errors.StoreError, "STORE_FAILED", code_pb2.INTERNAL),
    (errors.UnavailableError, "STOPPING", code_pb2.UNAVAILABLE),
    (errors.ServerError, "SERVER_FAILED", code_pb2.INTERNAL),
)
"""Error class, reason on the wire, status code."""

_BY_REASON = {reason: cls for cls, reason, _ in CATALOGUE}
_PATH = "config_path"
_COMPONENT = "component"


def to_status(error: errors.ModelFactoryError, component: str = "") -> grpc.Status:
    """Turn an error into the status a server ends a call with."""
    _, reason, code = next((entry for entry in CATALOGUE if isinstance(error, entry[0])), CATALOGUE[-1])
    message = error.reason if isinstance(error, errors.ConfigError) else str(error)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata={_COMPONENT: component})
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest] = [info]
    if isinstance(error, errors.ConfigError):
        info.metadata[_PATH] = json.dumps(error.path)
        field = errors.path_text(error.path)
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = [any_pb2.Any() for _ in details]
    for any_message, detail in zip(packed, details, strict=True):
        any_message.Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed))


def from_rpc_error(
    error: grpc.RpcError, address: str, place_of: Callable[[str, tuple[str | int, ...]], str]
) -> Exception:
    """Turn a failed call into an exception of this package.

    ``place_of`` gives file, line and column for a component and a path inside its config.
    """
    code, message = error.code(), error.details() or "no details"
    info, path = _details(error)
    if info is None:
        return _without_details(code, message, address)
    cls = _BY_REASON.get(info.reason, errors.ServerError)
    component = info.metadata.get(_COMPONENT, "")
    if issubclass(cls, errors.ConfigError):
        return errors.ConfigError(message, path=path, place=place_of(component, path))
    return cls(f"component {component!r}: {message}" if component else message)


def _without_details(code: grpc.StatusCode, message: str, address: str) -> errors.ServerError:
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:  # the latter by a server that stops
            return errors.UnavailableError(f"the model-factory server at {address} cannot be reached: {message}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.UnavailableError(f"the model-factory server at {address} did not answer in time: {message}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.ServerError(f"{address} is not a model-factory server of this version: {message}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.LimitError(f"the model-factory server at {address} refused: {message}")
    return errors.ServerError(f"the model-factory server at {address} failed ({code.name}): {message}")


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo | None, tuple[str | int, ...]]:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # code and details disagree: the other side is not ours
        return None, ()
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            return info, _decode_path(info.metadata.get(_PATH, ""))
    return None, ()


def _decode_path(text: str) -> tuple[str | int, ...]:
    """Read a config path off error details; what is not one is no place, rather than an error about an error."""
    try:
        path = json.loads(text)
    except ValueError:
        return ()
    return tuple(path) if isinstance(path, list) and all(type(part) in {str, int} for part in path) else ()


def to_digest(blob: Blob) -> blob_pb2.Digest:
    """Write a blob's identity as a message."""
    return blob_pb2.Digest(blake3=blob.digest, size_bytes=blob.size)


READ_BLOB = "/model_factory.v1.ModelFactoryService/ReadBlob"
"""The one method whose responses are written with :func:`chunk_prefix` and read with :func:`chunk_of`."""

_CHUNK_TAG = 0x0A  # field 1, length-delimited: ReadBlobResponse.data


def chunk_prefix(length: int) -> bytes:
    """What comes before ``length`` bytes of data, at least one, to make them a ``ReadBlobResponse``."""
    prefix = bytearray((_CHUNK_TAG,))
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)


def chunk_of(message: bytes) -> memoryview:
    """Return the data of a serialised ``ReadBlobResponse``, without copying it.

    Raises:
        FormatError: it is not one.
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
    raise errors.FormatError("a chunk of a blob is not a ReadBlobResponse with data and nothing else")


def from_digest(message: blob_pb2.Digest) -> Blob:
    """Read a blob's identity.

    Raises:
        FormatError: it is not one.
    """
    if message.size_bytes < 0:
        raise errors.FormatError(f"{message.size_bytes} is not a size")
    return Blob(check_digest(message.blake3), message.size_bytes)
