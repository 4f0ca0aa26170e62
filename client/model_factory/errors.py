"""All errors of model-factory that a user can meet.

::

    ModelFactoryError             base of all errors of this package
    ├── LocatedError              an error with a place in a component config: file, line and column
    │   ├── ConfigError           a component config is wrong
    │   └── BuildError            the config is valid, but the model cannot be built
    │       └── NotPortableError  a module cannot be sent to a trainer
    ├── GraphExecutionError       a graph refuses a call, or the result of a step
    │   └── CallSignatureError    no program exists for this call signature of a module
    │       ├── OutdatedBuildError  a new program is needed, and the server now builds another module
    │       │                     the forward refuses the call; each class is also the class of the forward's error:
    │       ├── RefusedNotImplementedError
    │       ├── RefusedRuntimeError
    │       ├── RefusedValueError
    │       ├── RefusedTypeError
    │       ├── RefusedIndexError
    │       ├── RefusedKeyError
    │       ├── RefusedAttributeError
    │       └── RefusedAssertionError
    ├── FormatError               a descriptor, program or blob breaks its format
    │   ├── IntegrityError        bytes do not match the requested digest
    │   └── RangeError            a request for bytes outside of a blob
    ├── SourceError               a model needs source code that is not trusted, or that cannot run here
    ├── LockError                 a build differs from the build that a lock pins
    ├── StoreError                a store or cache folder cannot be used: no space, no permission
    │   └── MissingBlobError      the server's store does not have a blob, or no longer has the blob
    └── ServerError               the server refused or failed, or the address of the server is wrong
        ├── LimitError            the request is over a limit of the server
        │   └── BusyError         too many requests are in progress: retry later
        ├── AccessError           the server does not accept this client, or a token or certificate cannot be used
        └── UnavailableError      the server cannot be reached, or went away

Errors inside a step of a model, raised by torch or by a hook, keep their own class. Two more errors are not from this
package: ``ValueError`` for an empty ``model_cfg``, and torch's errors for a device.

In the examples below, ``server`` is the address of a running server, ``factory`` a ``RemoteModelFactory`` for the
server, and ``model_cfg`` a valid config.
"""

from __future__ import annotations

import re

from model_factory.wording import printable, printable_lines, shortened

_FRAMES = re.compile(r"\n[ \t]*(?:Exception raised from|frame #)")


class ModelFactoryError(Exception):
    """Base of all errors of this package.

    The text may quote a server, a client or a file. Control characters and other invisible characters are escaped, and
    a long text loses its middle, in ``str()``, ``repr()`` and ``args`` alike.

    >>> try:
    ...     factory.build({"config_path": "missing.yaml"})
    ... except ModelFactoryError as error:
    ...     print(type(error).__name__)
    ConfigError
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(safe_text(item) if isinstance(item, str) else item for item in args))


class LocatedError(ModelFactoryError):
    """An error with a place in a component config.

    ``path`` is the place inside the config, for example ``("model", "graph", "inputs", 0)``. ``reason`` is the message
    without the place. ``place`` is the file, line and column; a server sends path and reason, and the client adds the
    place.
    """

    def __init__(self, reason: str, *, path: tuple[str | int, ...] = (), place: str | None = None) -> None:
        self.reason = reason = safe_text(reason)
        self.path = path
        self.place = place
        prefix = ": ".join(part for part in (place, path_text(path)) if part)
        super().__init__(f"{prefix}: {reason}" if prefix else reason)


class ConfigError(LocatedError):
    """A component config is wrong; the message has file, line, column and the nearest valid name.

    >>> layer = {"_type_": "nn.Linaer", "in_features": 8, "out_features": 4}
    >>> try:
    ...     factory.build({"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}})
    ... except ConfigError as error:
    ...     print(path_text(error.path), error.reason.partition("; ")[2])
    model.sequential.layers[0]._type_ did you mean 'nn.Linear'?
    """


class BuildError(LocatedError):
    """A valid config whose model cannot be built, for example because a constructor failed.

    >>> layer = {"_type_": "nn.Linear", "in_features": -1, "out_features": 4}
    >>> try:
    ...     factory.build({"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}})
    ... except BuildError as error:
    ...     print(path_text(error.path))
    model.sequential.layers[0]
    """


class NotPortableError(BuildError):
    """A module cannot be sent to a trainer: the message has the module, the reason and a remedy.

    >>> try:
    ...     model = factory.build(model_cfg)
    ... except NotPortableError as error:  # factory.describe(model_cfg, portability=True) lists every module
    ...     print(error.reason)
    """


class GraphExecutionError(ModelFactoryError):
    """A graph refuses the inputs, the result of a step, or arguments that are unsafe for a kernel.

    An exception inside a step (from torch, a hook or a child module) has another class: the same exception object is
    passed on, with a note of the step's number and call.

    >>> model = factory.build(model_cfg)
    >>> try:
    ...     model()
    ... except GraphExecutionError as error:
    ...     print(error)
    missing input: x
    """


class CallSignatureError(GraphExecutionError):
    """No program exists for this call signature of a module, and no program could be recorded.

    A call that the forward refuses raises a subclass, which is also the class of the forward's error.

    >>> block = {"_type_": "model_factory.SelfCheck", "width": 3}
    >>> model = factory.build({"config": {"schema_version": 1, "model": {"sequential": {"layers": [block]}}}})
    >>> try:
    ...     model("text")
    ... except CallSignatureError as error:
    ...     print(isinstance(error, AttributeError))
    True
    """


class OutdatedBuildError(CallSignatureError):
    """A new program is needed, and the server now builds another module: the code or the files changed.

    >>> model = factory.build(model_cfg)
    >>> try:
    ...     result = model(torch.ones(2, 8))
    ... except OutdatedBuildError:  # load the trained weights into a new build
    ...     state, model = model.state_dict(), factory.build(model_cfg)
    ...     model.load_state_dict(state)
    """


class RefusedNotImplementedError(CallSignatureError, NotImplementedError):
    """The forward refuses a call with a ``NotImplementedError``."""


class RefusedRuntimeError(CallSignatureError, RuntimeError):
    """The forward refuses a call with a ``RuntimeError``."""


class RefusedValueError(CallSignatureError, ValueError):
    """The forward refuses a call with a ``ValueError``."""


class RefusedTypeError(CallSignatureError, TypeError):
    """The forward refuses a call with a ``TypeError``."""


class RefusedIndexError(CallSignatureError, IndexError):
    """The forward refuses a call with an ``IndexError``."""


class RefusedKeyError(CallSignatureError, KeyError):
    """The forward refuses a call with a ``KeyError``."""

    __str__ = Exception.__str__  # KeyError has the repr of a key


class RefusedAttributeError(CallSignatureError, AttributeError):
    """The forward refuses a call with an ``AttributeError``."""


class RefusedAssertionError(CallSignatureError, AssertionError):
    """The forward refuses a call with an ``AssertionError``."""


class FormatError(ModelFactoryError):
    """A descriptor, program, blob or digest breaks the format or a limit.

    >>> try:
    ...     RemoteModelFactory(server, trust_source=["abc"])
    ... except FormatError as error:
    ...     print(error)
    'abc' is not a digest (64 hexadecimal digits in lower case)
    """


class IntegrityError(FormatError):
    """Content does not match the digest or the declared size: a damaged disk, or a faulty server.

    >>> try:
    ...     model = factory.build(model_cfg)
    ... except IntegrityError as error:  # not cached; check the server's disk with `model-factory cache verify`
    ...     print(error)
    """


class RangeError(FormatError):
    """A request for bytes outside of a blob, for example from a client with another version than the server.

    >>> try:
    ...     model = factory.build(model_cfg)
    ... except RangeError as error:
    ...     print(error)
    """


class SourceError(ModelFactoryError):
    """A model needs source code that the trainer does not trust, or that cannot run here.

    >>> try:
    ...     RemoteModelFactory(server, trust_source="missing.lock")
    ... except SourceError as error:
    ...     print(str(error).partition(". Remedy: ")[2])
    write the file with `model-factory trust CONFIG -o missing.lock`
    """


class LockError(ModelFactoryError):
    """A build differs from the pinned build, or the build lock cannot be read.

    >>> try:
    ...     RemoteModelFactory(server, lock="missing.lock")
    ... except LockError as error:
    ...     print(str(error).partition(". Remedy: ")[2])
    write the file with `model-factory lock CONFIG --seed SEED -o missing.lock`
    """


class StoreError(ModelFactoryError):
    """A store or cache folder cannot be read or written.

    >>> try:
    ...     RemoteModelFactory(server, cache_dir="/dev/null/cache")
    ... except StoreError as error:
    ...     print(str(error).partition(". Remedy: ")[0])
    cannot use /dev/null/cache as a store: Not a directory
    """


class MissingBlobError(StoreError):
    """The server's store does not have a requested blob: build again. ``RemoteModelFactory.build`` retries once.

    >>> try:
    ...     factory.read_source(Blob("00" * 32, 10))
    ... except MissingBlobError as error:
    ...     print(str(error).partition(". Remedy: ")[2])
    build again
    """


class ServerError(ModelFactoryError):
    """The server refused or failed a request, or broke the protocol; or the address of the server is wrong.

    >>> try:
    ...     RemoteModelFactory("gpu-node")
    ... except ServerError as error:
    ...     print(error)
    'gpu-node' is not the address of a server: the port is missing. Remedy: gpu-node:50051
    """


class LimitError(ServerError):
    """The request is over a limit of the server.

    >>> layer = {"_type_": "nn.Linear", "in_features": 1_000_000, "out_features": 1_000_000}
    >>> try:
    ...     factory.build({"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}})
    ... except LimitError as error:
    ...     print(str(error).partition(";")[0])
    component 'model': the model has 4000004000000 bytes of weights
    """


class BusyError(LimitError):
    """Too many requests are in progress or wait on the server: retry the same request later.

    >>> for seconds in (1, 10, 60):
    ...     try:
    ...         model = factory.build(model_cfg)
    ...         break
    ...     except BusyError:
    ...         time.sleep(seconds)
    """


class AccessError(ServerError):
    """The server does not accept this client, or a token or certificate cannot be used.

    >>> try:
    ...     Credentials(cert_file="client.pem")
    ... except AccessError as error:
    ...     print(error)
    cert_file and key_file go together. Remedy: give both, or neither
    """


class UnavailableError(ServerError):
    """The server cannot be reached, is stopping, or went away during a request; a retry may succeed.

    >>> try:
    ...     RemoteModelFactory("127.0.0.1:1").blocks()
    ... except UnavailableError as error:
    ...     print(str(error).partition(":1 ")[2].partition(":")[0])
    cannot be reached
    """


_REFUSALS: tuple[tuple[type[Exception], type[CallSignatureError]], ...] = (
    (NotImplementedError, RefusedNotImplementedError),
    (RuntimeError, RefusedRuntimeError),
    (ValueError, RefusedValueError),
    (TypeError, RefusedTypeError),
    (IndexError, RefusedIndexError),
    (KeyError, RefusedKeyError),
    (AttributeError, RefusedAttributeError),
    (AssertionError, RefusedAssertionError),
)
"""Class of the forward's exception, and class of the error for the trainer; most specific first."""


def refused_call(text: str, raised: BaseException) -> CallSignatureError:
    """Return the error for a call that a forward refuses, as a subclass of the class of the forward's exception.

    >>> isinstance(refused_call("sizes differ", ValueError()), ValueError)
    True
    """
    return next((error for kind, error in _REFUSALS if isinstance(raised, kind)), CallSignatureError)(text)


def safe_text(text: str) -> str:
    r"""Return the text of an error for terminals and logs: printable lines of a bounded length.

    >>> safe_text("unknown layer \x1b[2J")
    'unknown layer \\x1b[2J'
    """
    return printable_lines(shortened(text))


def plain_text(error: BaseException | str) -> str:
    r"""Return the text of an error without the C++ frames of torch, which contain addresses and paths.

    >>> plain_text("sizes differ\nException raised from add at /src/add.cpp:7")
    'sizes differ'
    """
    text = str(error)
    found = _FRAMES.search(text)
    return text if found is None else text[: found.start()].rstrip()


def path_text(path: tuple[str | int, ...]) -> str:
    """Write a config path as text, printable and of a bounded length.

    >>> path_text(("model", "graph", "inputs", 0))
    'model.graph.inputs[0]'
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return printable(shortened(text))
