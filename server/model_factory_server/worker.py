"""The builder process: builds one component, and ends.

A process of its own for each build, because seeding is process-wide, because a process can be limited and killed, and
because nothing a config does then outlives the build. The fork server that the processes come from has this module,
and so torch, imported already.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from model_factory.config import ResolvedConfig, parse_config
from model_factory.descriptor.architecture import Architecture
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor, encode_programs
from model_factory.descriptor.describe import describe, named_tensors
from model_factory.descriptor.tree import BundleRef, Descriptor, SourceClass
from model_factory.descriptor.weights import write_weights
from model_factory.documents import encode_document
from model_factory.errors import BuildError, ConfigError, LimitError, ModelFactoryError, NotPortableError, ServerError
from model_factory.graph.call_example import decode_call
from model_factory.graph.call_form import FORWARD
from model_factory.graph.runner import get_module, torch_const
from model_factory.store import Blob, Store
from model_factory_server.apart import apart, die_with_parent
from model_factory_server.backends import Backend
from model_factory_server.backends.loading import load_backend
from model_factory_server.backends.sources import operator_files, operator_roots, stamp_of_files
from model_factory_server.recording.bundling import Root
from model_factory_server.recording.examples import materialise
from model_factory_server.recording.portable import Portable, record_call, survey_model
from model_factory_server.settings import BackendSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a builder process is to do."""

    kind: Literal["build", "describe", "record", "list"]
    """Which of the functions below."""
    store: Path
    """Where blobs go."""
    backend: BackendSettings
    """What builds."""
    code_stamp: str
    """Of the operator's files when the server started."""
    config: bytes = b""
    """The component's config as on the wire."""
    seed: int = 0
    """The component's own seed."""
    dtype: str = ""
    """What floating tensors are cast to; empty: left."""
    device_kind: str = "cpu"
    """Where the model is initialised."""
    max_weights_bytes: int
    """Refuse models with more."""
    threads: int = 1
    """Threads for torch's kernels, so that builders at the same time do not wait for each other."""
    known: tuple[str, int] | None = None
    """The descriptor under another seed: what is recorded need not be so again. None where nothing is known."""
    travel: bool = False
    """Of a description: whether to find out how each module travels."""
    method: str = FORWARD
    """Of the module to record."""
    path: str = ""
    """Of the module to record."""
    call: bytes = b""
    """The call to record it for."""
    training: tuple[tuple[str, bool], ...] = ()
    """Training flags at that call."""


_NOT_SHARED = (
    "A block whose forward is no program can travel as source, if the operator allows it with --share-source and the "
    "trainer trusts it (docs/portability.md)"
)
_FOUND_AT_BUILDS = (
    "This server shares source: a block whose examples, its own or those of the config's signature, no program can "
    "stand for travels as source (docs/portability.md)"
)


def main(job: Job, connection: Connection) -> None:
    """Do a job and send ``("stage", name)`` any number of times and then ``("result", ...)`` or ``("error", ...)``."""
    die_with_parent()
    torch.set_num_threads(job.threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    try:
        result = _JOBS[job.kind](job, lambda stage: connection.send(("stage", stage)))
    except ModelFactoryError as error:
        if type(error) in {BuildError, ServerError} and error.__cause__ is not None:
            traceback.print_exc()  # the operator's code failed: where it did is for the server's log alone
        path = error.path if isinstance(error, ConfigError) else ()
        text = error.reason if isinstance(error, ConfigError) else str(error)
        connection.send(("error", (type(error).__name__, text, path)))
    except Exception as error:  # noqa: BLE001  ours to mend: the details are for the server's log, not for the client
        traceback.print_exc()
        text = f"the builder failed with {type(error).__name__}; the server's log has the details"
        connection.send(("error", ("ServerError", text, ())))
    else:
        connection.send(("result", result))
    finally:
        connection.close()


def _build(job: Job, stage: Callable[[str], None]) -> dict[str, Any]:
    stage("constructing")
    backend, config = _load_backend(job), parse_config(job.config)
    _check_size(job, backend, config)
    model = construct(backend, config, job.seed, job.device_kind)
    store = Store(job.store)
    result: dict[str, Any] = {}
    if job.known is None:
        stage("recording")
        with _hinting(job):
            portable = survey_model(model, config.model, _shared(job))
        result |= _put_portable(store, portable)
        classes, bundle = _classes(portable)
    else:
        classes, bundle = _known_classes(model, decode_descriptor(store.read(Blob(*job.known)) or b""))
    _cast(model, job.dtype)
    stage("writing")
    descriptor = describe(model, classes, bundle)
    result["descriptor"] = _blob(store.put(encode_descriptor(descriptor)))
    with store.stage() as (file, publish):
        blob = Blob(*write_weights(file, named_tensors(model, descriptor)))
        publish(blob)
    return result | {"weights": _blob(blob)}


def _shared(job: Job) -> tuple[Root, ...]:
    return operator_roots(job.backend) if job.backend.share_source else ()


@contextmanager
def _hinting(job: Job) -> Iterator[None]:
    """Say of what cannot travel how its source could."""
    try:
        yield
    except NotPortableError as error:
        hint = _FOUND_AT_BUILDS if job.backend.share_source else _NOT_SHARED
        raise NotPortableError(f"{error}. {hint}") from error


def _put_portable(store: Store, portable: Portable) -> dict[str, Any]:
    blobs = {"programs": encode_programs(portable.programs)}
    if portable.sources is not None:
        blobs["source"] = portable.sources.bundle
    return {name: _blob(store.put(data)) for name, data in blobs.items()}


def _classes(portable: Portable) -> tuple[Mapping[nn.Module, SourceClass], BundleRef | None]:
    return ({}, None) if portable.sources is None else (portable.sources.classes, portable.sources.ref)


def _known_classes(model: nn.Module, known: Descriptor) -> tuple[Mapping[nn.Module, SourceClass], BundleRef | None]:
    nodes = {path: known.modules[index].source for index, path in known.paths().items()}
    return {get_module(model, path): node for path, node in nodes.items() if node is not None}, known.bundle


def _describe(job: Job, stage: Callable[[str], None]) -> dict[str, Any]:
    stage("constructing")
    backend, config = _load_backend(job), parse_config(job.config)
    store = Store(job.store)
    refused: dict[str, str] = {}
    if job.travel:
        try:
            _check_size(job, backend, config)
        except LimitError as error:
            refused[""] = str(error)
        else:
            return _travels(job, backend, config, stage)

    def described(model: nn.Module) -> bytes:
        _cast(model, job.dtype)
        return encode_descriptor(describe(model, refused={} if job.backend.share_source else None))

    data = apart(lambda: described(construct(backend, config, job.seed, "meta")))
    if data is None:  # a constructor needs real tensors, or something is wrong: now it is said what
        data = described(construct(backend, config, job.seed, job.device_kind))
    result = {"descriptor": _blob(store.put(data))}
    return result | ({"refused": _blob(store.put(encode_document(refused)))} if refused else {})


def _travels(job: Job, backend: Backend, config: ResolvedConfig, stage: Callable[[str], None]) -> dict[str, Any]:
    """What a build does, without writing weights; what would be refused there is noted."""
    model = construct(backend, config, job.seed, job.device_kind)
    stage("recording")
    refused: dict[str, str] = {}
    portable = survey_model(model, config.model, _shared(job), refused)
    classes, bundle = _classes(portable)
    _cast(model, job.dtype)
    store = Store(job.store)
    result = _put_portable(store, portable)
    result["descriptor"] = _blob(store.put(encode_descriptor(describe(model, classes, bundle, refused=refused))))
    return result | ({"refused": _blob(store.put(encode_document(refused)))} if refused else {})


def _record(job: Job, stage: Callable[[str], None]) -> dict[str, Any]:
    arguments = decode_call(job.call)
    stage("constructing")
    backend, config = _load_backend(job), parse_config(job.config)
    _check_size(job, backend, config)
    model = construct(backend, config, job.seed, "cpu")
    _cast(model, job.dtype)
    stage("recording")
    with _hinting(job):
        recorded = record_call(model, job.path, arguments, dict(job.training), job.method)
    return {"programs": _blob(Store(job.store).put(encode_programs(((job.path, recorded),))))}


def _list(job: Job, _stage: Callable[[str], None]) -> list[dict[str, Any]]:
    return [
        {
            "name": item.name if item.kind == "module" else f"op:{item.name}",
            "summary": item.doc,
            "origin": item.source,
            "arguments": [
                {
                    "name": argument.name,
                    "annotation": argument.annotation,
                    "required": argument.required,
                    "default": argument.default or "",
                }
                for argument in item.arguments or ()
            ],
        }
        for item in _load_backend(job).blocks()
    ]


_JOBS: dict[str, Callable[[Job, Callable[[str], None]], Any]] = {
    "build": _build,
    "describe": _describe,
    "record": _record,
    "list": _list,
}


def construct(backend: Backend, config: ResolvedConfig, seed: int, device_kind: str) -> nn.Module:
    """Build a component in this process; the process's random state is set by ``seed``.

    Lazy modules get their shapes if the config's ``signature`` gives examples.

    Raises:
        ConfigError: the config names or passes something wrong.
        BuildError: a constructor fails.
    """
    torch.manual_seed(seed)
    with torch.device(device_kind):
        model = backend.construct(config)
        materialise(model, config.model)
    return model


def _load_backend(job: Job) -> Backend:
    if stamp_of_files(operator_files(job.backend)) != job.code_stamp:
        raise ServerError("the code that this server builds with has changed since it started. Remedy: restart it")
    return load_backend(job.backend)


def _check_size(job: Job, backend: Backend, config: ResolvedConfig) -> None:
    size = apart(lambda: Architecture(describe(construct(backend, config, job.seed, "meta"), refused={})).bytes) or 0
    if size > job.max_weights_bytes:
        raise LimitError(f"the model has {size} bytes of weights; this server builds at most {job.max_weights_bytes}")


def _cast(model: nn.Module, dtype: str) -> None:
    if dtype:
        model.to(dtype=torch_const(dtype))


def _blob(blob: Blob) -> list[str | int]:
    return [blob.digest, blob.size]
