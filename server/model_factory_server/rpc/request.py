"""Checks the messages of clients, and turns them into requests for builds."""

from __future__ import annotations

from collections.abc import Sequence

from model_factory.errors import FormatError, LimitError, RangeError
from model_factory.identity import BuildReference
from model_factory.store import Blob
from model_factory.v1 import blob_pb2, build_pb2, program_pb2, wire
from model_factory.wording import is_printable, quoted
from model_factory_server.builds.service import BuildRequest
from model_factory_server.observe.rpc_context import at_component
from model_factory_server.parsing.config_parser import ConfigParser
from model_factory_server.settings.server_settings import LimitSettings

_DTYPES = ("bfloat16", "float16", "float32", "float64")
_MAX_NAME_BYTES = 255


async def read_components(
    components: Sequence[build_pb2.Component], dtype: str, client: str, limits: LimitSettings, parser: ConfigParser
) -> dict[str, BuildRequest]:
    """Check the components of a request and parse their configs; return the build requests by name.

    Raises:
        FormatError: a name, the dtype or the JSON is malformed, or no component is named.
        LimitError: the request exceeds a limit.
        ConfigError: a config is invalid.
    """
    if not components:
        raise FormatError("a request names no component. Remedy: name at least one component")
    if len(components) > limits.max_components:
        raise LimitError(f"a request has at most {limits.max_components} components, got {len(components)}")
    _check_dtype(dtype)
    requests: dict[str, BuildRequest] = {}
    for component in components:
        name = component.name
        if not 0 < len(name.encode()) <= _MAX_NAME_BYTES or not is_printable(name) or name in requests:
            raise FormatError(
                f"component names are unique, printable and have 1 to {_MAX_NAME_BYTES} bytes, got {quoted(name)}"
            )
        with at_component(name):
            config = await parser.parse(component.config_json, client)
        requests[name] = BuildRequest(config=config, dtype=dtype, client=client)
    return requests


def read_build_reference(request: program_pb2.RecordProgramRequest) -> BuildReference:
    """Return the build of the module to record.

    Raises:
        FormatError: the reference is missing, or a field is malformed.
    """
    if not request.HasField("build"):
        raise FormatError(
            "a request to record a program refers to no build: client and server have different versions. "
            "Remedy: install the same version on both"
        )
    reference = wire.from_reference(request.build)
    _check_dtype(reference.dtype)
    return reference


def check_module_call(request: program_pb2.RecordProgramRequest, limits: LimitSettings) -> None:
    """Check the size of a module call before the call is decoded.

    Raises:
        LimitError: the call exceeds a limit.
    """
    if len(request.training) > limits.max_modules:
        raise LimitError(
            f"a call has training flags of at most {limits.max_modules} modules, got {len(request.training)}"
        )
    size = len(request.call_json) + len(request.module_path) + sum(map(len, request.training))
    if size > limits.max_config_bytes:
        raise LimitError(f"a call with its module names has at most {limits.max_config_bytes} bytes, got {size}")


def requested_length(request: blob_pb2.ReadBlobRequest, blob: Blob) -> int:
    """Return the number of bytes to send.

    Raises:
        RangeError: the offset or the limit is out of range.

    Example:
        >>> requested_length(blob_pb2.ReadBlobRequest(offset_bytes=40), Blob("0" * 64, 100))
        60
    """
    if not 0 <= request.offset_bytes <= blob.size or request.limit_bytes < 0:
        raise RangeError(
            f"offset {request.offset_bytes} and limit {request.limit_bytes} are out of range for a blob of {blob.size} "
            f"bytes. Remedy: an offset from 0 to {blob.size}, and a limit of 0 or more"
        )
    return min(request.limit_bytes or blob.size, blob.size - request.offset_bytes)


def _check_dtype(dtype: str) -> None:
    if dtype and dtype not in _DTYPES:
        raise FormatError(f"dtype {quoted(dtype)} is not one of {', '.join(_DTYPES)}")
