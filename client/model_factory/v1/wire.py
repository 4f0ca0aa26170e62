"""The only place that maps protobuf messages to this package's types, for client and server."""

from __future__ import annotations

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
    _, reason, code = next(entry for entry in CATALOGUE if isinstance(error, entry[0]))
    message = error.reason if isinstance(error, errors.ConfigError) else str(error)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata={_COMPONENT: component})
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest] = [info]
    if isinstance(error, errors.ConfigError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=_encode_path(error.path), description=message)
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
        case grpc.StatusCode.UNAVAILABLE:
            return errors.UnavailableError(f"the model-factory server at {address} cannot be reached: {message}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.UnavailableError(f"the model-factory server at {address} did not answer in time: {message}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.ServerError(f"{address} is not a model-factory server of this version: {message}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.LimitError(f"the model-factory server at {address} refused: {message}")
    return errors.ServerError(f"the model-factory server at {address} failed ({code.name}): {message}")


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo | None, tuple[str | int, ...]]:
    info, path = None, ()
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # code and details disagree: the other side is not ours
        status = None
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            candidate = error_details_pb2.ErrorInfo()
            detail.Unpack(candidate)
            info = candidate if candidate.domain == ERROR_DOMAIN else None
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            path = _decode_path(bad_request.field_violations[0].field) if bad_request.field_violations else ()
    return info, path


def _encode_path(path: tuple[str | int, ...]) -> str:
    return "/".join(
        f"#{part}" if isinstance(part, int) else part.replace("%", "%25").replace("/", "%2F") for part in path
    )


def _decode_path(text: str) -> tuple[str | int, ...]:
    return tuple(
        int(part[1:]) if part[:1] == "#" and part[1:].isdigit() else part.replace("%2F", "/").replace("%25", "%")
        for part in (text.split("/") if text else ())
    )


def to_digest(blob: Blob) -> blob_pb2.Digest:
    """Write a blob's identity as a message."""
    return blob_pb2.Digest(blake3=blob.digest, size_bytes=blob.size)


def from_digest(message: blob_pb2.Digest) -> Blob:
    """Read a blob's identity.

    Raises:
        FormatError: it is not one.
    """
    if message.size_bytes < 0:
        raise errors.FormatError(f"{message.size_bytes} is not a size")
    return Blob(check_digest(message.blake3), message.size_bytes)
