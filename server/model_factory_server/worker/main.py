"""The builder process: builds one component, and ends.

A process of its own for each build, because seeding is process-wide, because a process can be limited and killed, and
because nothing a config does then outlives the build. The fork server that the processes come from has this module,
and so torch, imported already.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from model_factory.config import ResolvedConfig, parse_config
from model_factory.descriptor.architecture import Architecture
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor, encode_programs
from model_factory.descriptor.tree import Descriptor, SourceClass, SourceNode
from model_factory.documents import encode_document
from model_factory.environment import keep_variables
from model_factory.errors import (
    BuildError,
    LimitError,
    LocatedError,
    ModelFactoryError,
    NotPortableError,
    OutdatedBuildError,
    ServerError,
    plain_text,
)
from model_factory.limits import MAX_DOCUMENT_BYTES
from model_factory.program.example_call import decode_call
from model_factory.program.runtime.lookup import get_module
from model_factory.program.torch_names import torch_dtype
from model_factory.store import Blob, Store
from model_factory_server.backends import Backend
from model_factory_server.backends.code_files import operator_files, operator_roots, stamp_of_files
from model_factory_server.backends.loading import load_backend
from model_factory_server.export.describe.describe import describe, named_tensors
from model_factory_server.export.exporter import Portable, record_call, survey_model
from model_factory_server.export.out_of_memory import is_out_of_memory
from model_factory_server.export.source.bundling import Root
from model_factory_server.worker import sandbox
from model_factory_server.worker.construction import check_size, construct, planned, size_of
from model_factory_server.worker.file_guard import GUARD
from model_factory_server.worker.read_files import encode_files
from model_factory_server.worker.task import Job
from model_factory_server.worker.weights_placement import Allocations, Placement, WeightsFile

SendEvent = Callable[[str, Any], None]
"""Told what happens in a job: what kind of thing, and which; see :func:`main`."""

_LOG_CHARACTERS = 64 * 1024  # of one traceback
_NOT_SHARED = (
    "A block whose forward is no program can travel as source, if the operator allows it with --share-source and the "
    "trainer trusts it (docs/portability.md)"
)
_FOUND_AT_BUILDS = (
    "This server shares source: a block whose examples, its own or those of the config's signature, no program can "
    "stand for travels as source (docs/portability.md)"
)
_FAILED = "the builder failed with {}; the server's log has the details"
_NOT_FORKABLE = (
    "builds cannot run: the process that they are forked from cannot be forked safely: {}. Remedy: remove what starts "
    "threads or CUDA when this Python starts or imports torch (a sitecustomize module, a .pth file, a profiler)"
)
_NOT_ISOLATED = (
    "this system gives builds no network namespace of their own: a build can reach the network. Remedy: allow "
    "unshare in the container's seccomp profile, or keep the server from the network (docs/operations.md#security)"
)


def main(job: Job, connection: Connection, forking_faults: Sequence[str]) -> None:
    """Do a job and send what comes of it: documents, for the server unpickles nothing that a build may have written.

    Nothing is done where the process that this one was forked from had ``forking_faults``.

    The documents are ``["stage", name]``, ``["evicted", bytes]``, ``["log", text]`` or ``["warning", text]`` any number
    of times, and then ``["result", [result, files]]`` or ``["error", ...]``; ``files`` are those that the job read.
    """

    def tell(kind: str, body: Any) -> None:
        connection.send_bytes(encode_document([kind, body]))

    if not _confine(job):
        tell("warning", _NOT_ISOLATED)
    if forking_faults:
        tell("error", [ServerError.__name__, _NOT_FORKABLE.format("; ".join(forking_faults)), ()])
        return
    torch.set_num_threads(job.threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    try:
        GUARD.watch(job.backend, job.store)
        result = _JOBS[job.task.kind](job, tell)
        files = encode_files(GUARD.finish())
    except Exception as raised:  # noqa: BLE001  every one is told, of ours the text and of others the class
        error = _named(raised)
        if _is_for_the_log(error):
            tell("log", _encodable("".join(traceback.format_exception(error))[-_LOG_CHARACTERS:]))
        name, text, path = _error_fields(error)
        tell("error", [name, _encodable(text), path])
    else:
        tell("result", [result, files])
    finally:
        connection.close()


def _named(error: Exception) -> Exception:
    """Return the error of a job; where a file was refused, and the operator's code made another error of that, why."""
    refusal = GUARD.refusal()
    if refusal is None or refusal.reason in str(error):
        return error
    placed = BuildError(refusal.reason, path=error.path if isinstance(error, LocatedError) else ())
    placed.__cause__ = refusal.__cause__
    return placed


def _encodable(text: str) -> str:
    """Text without the lone surrogates that stand for bytes of file names, say."""
    return text.encode(errors="backslashreplace").decode()


def _is_for_the_log(error: Exception) -> bool:
    """Whether the operator's code or ours failed: where it did is for the server's log alone."""
    if isinstance(error, ModelFactoryError):
        return type(error) in {BuildError, ServerError} and error.__cause__ is not None
    return not is_out_of_memory(error)


def _error_fields(error: Exception) -> tuple[str, str, tuple[str | int, ...]]:
    """What the server is told of an error: class, text, and place in the config."""
    if is_out_of_memory(error):
        with_all = "with what every builder starts with"
        host = f"than the {sandbox.allowed_memory()} bytes of memory that this server allows, {with_all}"
        where = "memory than the GPU has free" if isinstance(error, torch.OutOfMemoryError) else host
        return LimitError.__name__, f"the build needs more {where}", ()
    if isinstance(error, LocatedError):
        return type(error).__name__, plain_text(error.reason), error.path
    if isinstance(error, ModelFactoryError):
        return type(error).__name__, plain_text(error), ()
    return ServerError.__name__, _FAILED.format(type(error).__name__), ()


def _confine(job: Job) -> bool:
    """Keep this process, and what runs in it, to what a build may do; False where it can reach a network all the same.

    That is where the kernel, or a container's seccomp profile, gives it no namespace of its own.
    """
    sandbox.die_with_parent()
    sandbox.lead_own_group()
    keep_variables(job.isolation.allows_variable)
    sandbox.limit_resources(
        cpu_seconds=round(job.limits.build_cpu_timeout),
        file_bytes=job.limits.max_blob_bytes,
        open_files=job.isolation.max_open_files,
    )
    # CUDA reserves address space by the hundred GiB, so there is no limit of ours there unless the operator sets one.
    if job.limits.max_memory_bytes or job.device_kind == "cpu":
        sandbox.limit_memory(job.limits.max_memory_bytes or sandbox.node_memory())
    return job.isolation.worker_network or job.backend.hub.allow_download or sandbox.leave_network()


def _build(job: Job, tell: SendEvent) -> dict[str, Any]:
    tell("stage", "constructing")
    backend, config = _load_backend(job), parse_config(job.task.config)
    store = Store(job.store, job.limits.max_store_bytes, setting="--store")
    data, placed = (_read(store, (job.task.known or {}).get(name)) for name in ("descriptor", "placement"))
    known = None if data is None else decode_descriptor(data)  # evicted since it was looked up, it is made again
    if known is None:
        placed = _check_plan(job, backend, config)
    else:
        check_size(job.limits, (Architecture(known).bytes, len(known.modules)))
    with store.stage() as (file, publish):
        weights = WeightsFile(file, None if placed is None else Placement.decode(placed))
        with _no_error_of_the_store():
            model = weights.construct(lambda: construct(backend, config, job.task.seed, job.device_kind))
            check_size(job.limits, size_of(model, job.task.dtype))
            documents, classes, bundle = _architecture(job, model, config, known, tell)
            _cast(model, job.task.dtype)
            tell("stage", "writing")
            descriptor = describe(model, classes, bundle)
        if known is None and placed is not None:
            documents["placement"] = placed
        result = _put(store, documents | {"descriptor": encode_descriptor(descriptor)})
        evicted = store.make_room(size_of(model, job.task.dtype)[0], weights.reserved)
        tell("evicted", sum(entry.size for entry in evicted))
        blob = weights.write(named_tensors(model, descriptor))
        publish(blob)
    return result | {"weights": _blob(blob)}


def _architecture(
    job: Job, model: nn.Module, config: ResolvedConfig, known: Descriptor | None, tell: SendEvent
) -> tuple[dict[str, bytes], Mapping[nn.Module, SourceClass], Blob | None]:
    """What of a model is the same under another seed, if it is not known; its source classes; where their source is."""
    if known is not None:
        return {}, *_known_classes(model, known)
    tell("stage", "recording")
    with _hinting(job):
        portable = survey_model(model, config.model, _shared(job))
    return _documents(portable), *_classes(portable)


@contextmanager
def _no_error_of_the_store() -> Iterator[None]:
    """Tell what the operator's code raises from what a store does."""
    try:
        yield
    except OSError as error:
        raise ServerError(_FAILED.format(type(error).__name__)) from error


def _read(store: Store, blob: Sequence[Any] | None) -> bytes | None:
    return None if blob is None else store.read(Blob(*blob))


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


def _put(store: Store, documents: Mapping[str, bytes]) -> dict[str, Any]:
    return {name: _blob(store.put(data)) for name, data in documents.items()}


def _documents(portable: Portable) -> dict[str, bytes]:
    source = {} if portable.sources is None else {"source": portable.sources.bundle}
    return {"programs": encode_programs(portable.programs)} | source


def _classes(portable: Portable) -> tuple[Mapping[nn.Module, SourceClass], Blob | None]:
    return ({}, None) if portable.sources is None else (portable.sources.classes, portable.sources.ref)


def _known_classes(model: nn.Module, known: Descriptor) -> tuple[Mapping[nn.Module, SourceClass], Blob | None]:
    nodes = {path: known.modules[index] for index, path in known.paths().items()}
    classes = {get_module(model, path): node.source for path, node in nodes.items() if isinstance(node, SourceNode)}
    return classes, known.bundle


def _describe(job: Job, tell: SendEvent) -> dict[str, Any]:
    tell("stage", "constructing")
    backend, config = _load_backend(job), parse_config(job.task.config)
    store = Store(job.store, setting="--store")
    refused: dict[str, str] = {}
    if job.task.portability:
        try:
            _check_plan(job, backend, config)
            return _portability(job, backend, config, tell)
        except LimitError as error:
            refused[""] = str(error)

    def described(model: nn.Module) -> bytes:
        _cast(model, job.task.dtype)
        return encode_descriptor(describe(model, refused={} if job.backend.share_source else None))

    data = planned(job.limits, job.device_kind, lambda: described(construct(backend, config, job.task.seed, "meta")))
    if data is None:  # a constructor needs real tensors, or something is wrong: now it is said what
        data = described(construct(backend, config, job.task.seed, job.device_kind))
    if len(data) > MAX_DOCUMENT_BYTES:
        raise LimitError(f"the descriptor takes {len(data)} bytes; at most {MAX_DOCUMENT_BYTES} are allowed")
    return _put(store, {"descriptor": data} | _refusals(refused))


def _portability(job: Job, backend: Backend, config: ResolvedConfig, tell: SendEvent) -> dict[str, Any]:
    """What a build does, without writing weights; what would be refused there is noted."""
    model = construct(backend, config, job.task.seed, job.device_kind)
    check_size(job.limits, size_of(model, job.task.dtype))
    tell("stage", "recording")
    refused: dict[str, str] = {}
    portable = survey_model(model, config.model, _shared(job), refused)
    classes, bundle = _classes(portable)
    _cast(model, job.task.dtype)
    descriptor = encode_descriptor(describe(model, classes, bundle, refused=refused))
    return _put(
        Store(job.store, setting="--store"), _documents(portable) | {"descriptor": descriptor} | _refusals(refused)
    )


def _refusals(refused: dict[str, str]) -> dict[str, bytes]:
    return {"refused": encode_document(refused)} if refused else {}


def _record(job: Job, tell: SendEvent) -> dict[str, Any]:
    call = decode_call(job.task.call)
    tell("stage", "constructing")
    backend, config = _load_backend(job), parse_config(job.task.config)
    _check_plan(job, backend, config)
    model = construct(backend, config, job.task.seed, "cpu")
    check_size(job.limits, size_of(model, job.task.dtype))
    _check_origin(job, model)
    _cast(model, job.task.dtype)
    tell("stage", "recording")
    recorded = record_call(model, job.task.path, call, dict(job.task.training or {}))
    return {"programs": _blob(Store(job.store, setting="--store").put(encode_programs(((job.task.path, recorded),))))}


def _check_origin(job: Job, model: nn.Module) -> None:
    """Refuse to record a module of another descriptor than the module that the trainer has.

    Code and files are compared by the server already, and the seed is that of the build. What is left is a constructor
    that makes another model each time: of random numbers of its own, of the time, of the environment.
    """
    built = job.task.built
    assert built is not None
    known = _read(Store(job.store), (job.task.known or {}).get("descriptor"))
    _cast(model, built.dtype)
    classes, bundle = ({}, None) if known is None else _known_classes(model, decode_descriptor(known))
    if Blob.of(encode_descriptor(describe(model, classes, bundle))) != built.descriptor:
        raise OutdatedBuildError(
            "the server constructs another model than the one that is called: another descriptor from the same config, "
            "code and files. Remedy: build the model again; if the error comes back, a constructor of the model "
            "depends on the time, on the environment or on random numbers that are not torch's"
        )


def _list(job: Job, _tell: SendEvent) -> list[dict[str, Any]]:
    return [asdict(block) for block in _load_backend(job).blocks()]


_JOBS: dict[str, Callable[[Job, SendEvent], Any]] = {
    "build": _build,
    "describe": _describe,
    "record": _record,
    "list": _list,
}


def _load_backend(job: Job) -> Backend:
    if stamp_of_files(operator_files(job.backend)) != job.code_stamp:
        raise ServerError("the code that this server builds with has changed since it started. Remedy: restart it")
    return load_backend(job.backend)


def _check_plan(job: Job, backend: Backend, config: ResolvedConfig) -> bytes | None:
    """Refuse a model that is too large, before any of its tensors is made; return what a build can make in place."""
    # What is moved or cast is made anew.
    places = job.task.kind == "build" and job.device_kind == "cpu" and not job.task.dtype

    def plan() -> tuple[tuple[int, int], bytes | None]:
        with Allocations() as made:
            model = construct(backend, config, job.task.seed, "meta")
        return size_of(model, job.task.dtype), made.placement(model) if places else None

    found = planned(job.limits, job.device_kind, plan)
    if found is None:
        return None
    size, placement = found
    check_size(job.limits, size)
    return placement


def _cast(model: nn.Module, dtype: str) -> None:
    if dtype:
        model.to(dtype=torch_dtype(dtype))


def _blob(blob: Blob) -> list[str | int]:
    return [blob.digest, blob.size]
