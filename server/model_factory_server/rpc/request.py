"""Checks the messages of clients, and turns them into requests for builds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from model_factory.config import ConfigBounds, ResolvedConfig, parse_config
from model_factory.errors import FormatError, LimitError, RangeError
from model_factory.identity import BuildReference
from model_factory.store import Blob
from model_factory.v1 import blob_pb2, build_pb2, program_pb2, wire
from model_factory.wording import quoted
from model_factory_server.builds.service import BuildRequest
from model_factory_server.observe.rpc_context import at_component
from model_factory_server.settings.server_settings import LimitSettings

_DTYPES = ("bfloat16", "float16", "float32", "float64")
_MAX_NAME_BYTES = 255

# Parsing the largest config takes seconds. The threads are few, because each takes time from the event loop.
_PARSERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="parser")


async def read_components(
    components: Sequence[build_pb2.Component], dtype: str, client: str, limits: LimitSettings
) -> dict[str, BuildRequest]:
    """Check the components of a request and parse their configs in threads; return the build requests by name.

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
    loop = asyncio.get_running_loop()
    requests: dict[str, BuildRequest] = {}
    for component in components:
        name = component.name
        if not 0 < len(name.encode()) <= _MAX_NAME_BYTES or not name.isprintable() or name in requests:
            raise FormatError(
                f"component names are unique, printable and have 1 to {_MAX_NAME_BYTES} bytes, got {quoted(name)}"
            )
        with at_component(name):
            config = await loop.run_in_executor(_PARSERS, _parse_config, component.config_json, limits)
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


def _parse_config(data: bytes, limits: LimitSettings) -> ResolvedConfig:
    bounds = ConfigBounds(
        max_bytes=limits.max_config_bytes, max_values=limits.max_values, max_nesting=limits.max_nesting
    )
    return parse_config(data, bounds)


def _check_dtype(dtype: str) -> None:
    if dtype and dtype not in _DTYPES:
        raise FormatError(f"dtype {quoted(dtype)} is not one of {', '.join(_DTYPES)}")
