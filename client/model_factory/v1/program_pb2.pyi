from model_factory.v1 import build_pb2 as _build_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordProgramRequest(_message.Message):
    __slots__ = ("component", "dtype", "module_path", "call_json", "training", "build")
    class TrainingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: bool = ...) -> None: ...
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MODULE_PATH_FIELD_NUMBER: _ClassVar[int]
    CALL_JSON_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    component: _build_pb2.Component
    dtype: str
    module_path: str
    call_json: bytes
    training: _containers.ScalarMap[str, bool]
    build: _build_pb2.BuildReference
    def __init__(self, component: _Optional[_Union[_build_pb2.Component, _Mapping]] = ..., dtype: _Optional[str] = ..., module_path: _Optional[str] = ..., call_json: _Optional[bytes] = ..., training: _Optional[_Mapping[str, bool]] = ..., build: _Optional[_Union[_build_pb2.BuildReference, _Mapping]] = ...) -> None: ...

class RecordProgramResponse(_message.Message):
    __slots__ = ("programs_json", "source_descriptor_json")
    PROGRAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    SOURCE_DESCRIPTOR_JSON_FIELD_NUMBER: _ClassVar[int]
    programs_json: bytes
    source_descriptor_json: bytes
    def __init__(self, programs_json: _Optional[bytes] = ..., source_descriptor_json: _Optional[bytes] = ...) -> None: ...
