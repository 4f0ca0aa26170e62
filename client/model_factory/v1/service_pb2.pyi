from model_factory.v1 import blob_pb2 as _blob_pb2
from model_factory.v1 import build_pb2 as _build_pb2
from model_factory.v1 import capabilities_pb2 as _capabilities_pb2
from model_factory.v1 import program_pb2 as _program_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
