from model_factory.v1 import blob_pb2 as _blob_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BuildStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUILD_STAGE_UNSPECIFIED: _ClassVar[BuildStage]
    BUILD_STAGE_QUEUED: _ClassVar[BuildStage]
    BUILD_STAGE_CONSTRUCTING: _ClassVar[BuildStage]
    BUILD_STAGE_RECORDING: _ClassVar[BuildStage]
    BUILD_STAGE_WRITING: _ClassVar[BuildStage]
    BUILD_STAGE_DONE: _ClassVar[BuildStage]
BUILD_STAGE_UNSPECIFIED: BuildStage
BUILD_STAGE_QUEUED: BuildStage
BUILD_STAGE_CONSTRUCTING: BuildStage
BUILD_STAGE_RECORDING: BuildStage
BUILD_STAGE_WRITING: BuildStage
BUILD_STAGE_DONE: BuildStage

class Component(_message.Message):
    __slots__ = ("name", "config_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    config_json: bytes
    def __init__(self, name: _Optional[str] = ..., config_json: _Optional[bytes] = ...) -> None: ...

class BuildModelsRequest(_message.Message):
    __slots__ = ("components", "seed", "dtype")
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    components: _containers.RepeatedCompositeFieldContainer[Component]
    seed: int
    dtype: str
    def __init__(self, components: _Optional[_Iterable[_Union[Component, _Mapping]]] = ..., seed: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class BuildModelsResponse(_message.Message):
    __slots__ = ("progress", "manifest")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    progress: BuildProgress
    manifest: Manifest
    def __init__(self, progress: _Optional[_Union[BuildProgress, _Mapping]] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ...) -> None: ...

class BuildProgress(_message.Message):
    __slots__ = ("component", "stage", "elapsed_ms")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_MS_FIELD_NUMBER: _ClassVar[int]
    component: str
    stage: BuildStage
    elapsed_ms: int
    def __init__(self, component: _Optional[str] = ..., stage: _Optional[_Union[BuildStage, str]] = ..., elapsed_ms: _Optional[int] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("components", "inline_blobs", "identity", "server_version")
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    INLINE_BLOBS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    components: _containers.RepeatedCompositeFieldContainer[BuiltComponent]
    inline_blobs: _containers.RepeatedCompositeFieldContainer[InlineBlob]
    identity: BuildIdentity
    server_version: str
    def __init__(self, components: _Optional[_Iterable[_Union[BuiltComponent, _Mapping]]] = ..., inline_blobs: _Optional[_Iterable[_Union[InlineBlob, _Mapping]]] = ..., identity: _Optional[_Union[BuildIdentity, _Mapping]] = ..., server_version: _Optional[str] = ...) -> None: ...

class BuildIdentity(_message.Message):
    __slots__ = ("backend", "code_digest", "torch_version", "device_kind", "format_version")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    CODE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    backend: str
    code_digest: str
    torch_version: str
    device_kind: str
    format_version: int
    def __init__(self, backend: _Optional[str] = ..., code_digest: _Optional[str] = ..., torch_version: _Optional[str] = ..., device_kind: _Optional[str] = ..., format_version: _Optional[int] = ...) -> None: ...

class BuildReference(_message.Message):
    __slots__ = ("identity", "architecture_key", "descriptor", "dtype", "seed")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_KEY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    identity: BuildIdentity
    architecture_key: str
    descriptor: _blob_pb2.Digest
    dtype: str
    seed: int
    def __init__(self, identity: _Optional[_Union[BuildIdentity, _Mapping]] = ..., architecture_key: _Optional[str] = ..., descriptor: _Optional[_Union[_blob_pb2.Digest, _Mapping]] = ..., dtype: _Optional[str] = ..., seed: _Optional[int] = ...) -> None: ...

class BuiltComponent(_message.Message):
    __slots__ = ("name", "build_key", "descriptor", "programs", "weights", "built_now", "architecture_key", "checkpoint_digest", "notice", "warnings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUILD_KEY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    PROGRAMS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    BUILT_NOW_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_KEY_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    build_key: str
    descriptor: _blob_pb2.Digest
    programs: _blob_pb2.Digest
    weights: _blob_pb2.Digest
    built_now: bool
    architecture_key: str
    checkpoint_digest: str
    notice: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., build_key: _Optional[str] = ..., descriptor: _Optional[_Union[_blob_pb2.Digest, _Mapping]] = ..., programs: _Optional[_Union[_blob_pb2.Digest, _Mapping]] = ..., weights: _Optional[_Union[_blob_pb2.Digest, _Mapping]] = ..., built_now: bool = ..., architecture_key: _Optional[str] = ..., checkpoint_digest: _Optional[str] = ..., notice: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class InlineBlob(_message.Message):
    __slots__ = ("digest", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: _blob_pb2.Digest
    data: bytes
    def __init__(self, digest: _Optional[_Union[_blob_pb2.Digest, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class DescribeModelsRequest(_message.Message):
    __slots__ = ("components", "dtype", "portability")
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PORTABILITY_FIELD_NUMBER: _ClassVar[int]
    components: _containers.RepeatedCompositeFieldContainer[Component]
    dtype: str
    portability: bool
    def __init__(self, components: _Optional[_Iterable[_Union[Component, _Mapping]]] = ..., dtype: _Optional[str] = ..., portability: bool = ...) -> None: ...

class DescribeModelsResponse(_message.Message):
    __slots__ = ("components",)
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    components: _containers.RepeatedCompositeFieldContainer[DescribedComponent]
    def __init__(self, components: _Optional[_Iterable[_Union[DescribedComponent, _Mapping]]] = ...) -> None: ...

class DescribedComponent(_message.Message):
    __slots__ = ("name", "descriptor_json", "programs_json", "refused")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_JSON_FIELD_NUMBER: _ClassVar[int]
    PROGRAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    descriptor_json: bytes
    programs_json: bytes
    refused: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., descriptor_json: _Optional[bytes] = ..., programs_json: _Optional[bytes] = ..., refused: _Optional[_Mapping[str, str]] = ...) -> None: ...
