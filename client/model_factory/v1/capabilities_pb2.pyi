from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCapabilitiesResponse(_message.Message):
    __slots__ = ("server_version", "format_version", "backend", "device_kind", "limits", "store_path", "checkpoints")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    STORE_PATH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    format_version: int
    backend: Backend
    device_kind: str
    limits: Limits
    store_path: str
    checkpoints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, server_version: _Optional[str] = ..., format_version: _Optional[int] = ..., backend: _Optional[_Union[Backend, _Mapping]] = ..., device_kind: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., store_path: _Optional[str] = ..., checkpoints: _Optional[_Iterable[str]] = ...) -> None: ...

class Backend(_message.Message):
    __slots__ = ("name", "code_digest", "torch_version", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    code_digest: str
    torch_version: str
    version: str
    def __init__(self, name: _Optional[str] = ..., code_digest: _Optional[str] = ..., torch_version: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("components", "config_bytes", "inline_bytes", "weights_bytes", "build_timeout_ms", "request_bytes", "nesting", "values", "modules", "blob_bytes", "memory_bytes", "plan_timeout_ms", "build_cpu_timeout_ms", "workers", "queue", "client_workers", "client_queue", "rpcs", "client_rpcs", "store_bytes", "connections")
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_BYTES_FIELD_NUMBER: _ClassVar[int]
    INLINE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUILD_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    NESTING_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLAN_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    BUILD_CPU_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_WORKERS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_QUEUE_FIELD_NUMBER: _ClassVar[int]
    RPCS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_RPCS_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    components: int
    config_bytes: int
    inline_bytes: int
    weights_bytes: int
    build_timeout_ms: int
    request_bytes: int
    nesting: int
    values: int
    modules: int
    blob_bytes: int
    memory_bytes: int
    plan_timeout_ms: int
    build_cpu_timeout_ms: int
    workers: int
    queue: int
    client_workers: int
    client_queue: int
    rpcs: int
    client_rpcs: int
    store_bytes: int
    connections: int
    def __init__(self, components: _Optional[int] = ..., config_bytes: _Optional[int] = ..., inline_bytes: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., build_timeout_ms: _Optional[int] = ..., request_bytes: _Optional[int] = ..., nesting: _Optional[int] = ..., values: _Optional[int] = ..., modules: _Optional[int] = ..., blob_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., plan_timeout_ms: _Optional[int] = ..., build_cpu_timeout_ms: _Optional[int] = ..., workers: _Optional[int] = ..., queue: _Optional[int] = ..., client_workers: _Optional[int] = ..., client_queue: _Optional[int] = ..., rpcs: _Optional[int] = ..., client_rpcs: _Optional[int] = ..., store_bytes: _Optional[int] = ..., connections: _Optional[int] = ...) -> None: ...

class ListBlocksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBlocksResponse(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[Block]
    def __init__(self, blocks: _Optional[_Iterable[_Union[Block, _Mapping]]] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("name", "summary", "origin", "arguments", "tags")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    origin: str
    arguments: _containers.RepeatedCompositeFieldContainer[BlockArgument]
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., origin: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[BlockArgument, _Mapping]]] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class BlockArgument(_message.Message):
    __slots__ = ("name", "annotation", "required", "default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ANNOTATION_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    annotation: str
    required: bool
    default: str
    def __init__(self, name: _Optional[str] = ..., annotation: _Optional[str] = ..., required: bool = ..., default: _Optional[str] = ...) -> None: ...
