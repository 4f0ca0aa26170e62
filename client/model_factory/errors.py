"""Every error a user of model-factory can meet.

::

    ModelFactoryError
    ├── LocatedError              something in a component config; names file, line and column
    │   ├── ConfigError          a component config is wrong
    │   └── BuildError           the config is well formed, but its model cannot be built
    │       └── NotPortableError a module's forward cannot be written down as a program
    ├── GraphExecutionError      a graph refuses a call or a step's result; other errors of a step keep their type
    │   └── CallSignatureError        no program exists for this way of calling a module
    │       └── OutdatedBuildError the server builds another module by now than the one that is called
    │       │                    the forward refuses the call; each is also the error that the forward raises:
    │       ├── RefusedNotImplementedError
    │       ├── RefusedRuntimeError
    │       ├── RefusedValueError
    │       ├── RefusedTypeError
    │       ├── RefusedIndexError
    │       ├── RefusedKeyError
    │       ├── RefusedAttributeError
    │       └── RefusedAssertionError
    ├── FormatError              a descriptor, program or blob is not what it should be
    │   ├── IntegrityError       bytes do not match the digest they were asked for by
    │   └── RangeError           bytes were asked for that a blob does not have
    ├── SourceError              a model needs source that is not trusted here, or that cannot be used here
    ├── StoreError               a store or cache folder cannot be used: no space, no permission
    │   └── MissingBlobError     the server's store does not have a blob, or no longer
    └── ServerError              the server refused, failed or broke its contract, or its address is none
        ├── LimitError           the request is over a limit of the server
        │   └── BusyError        too much is in progress or waits: the same request may do later
        ├── AccessError          the server does not accept who asks, or a token or certificate cannot be used
        └── UnavailableError     the server cannot be reached, or went away
"""

from __future__ import annotations

import re

_FRAMES = re.compile(r"\s*\n(?:Exception raised from|frame #)")


class ModelFactoryError(Exception):
    """Base of all errors of this package."""


class LocatedError(ModelFactoryError):
    """Something that a component config asks for.

    ``path`` is the place inside the config (``("model", "graph", "inputs", 0)``); ``reason`` is the message
    without the place, which is what a server sends so that the client can add its own file, line and column.
    """

    def __init__(self, reason: str, *, path: tuple[str | int, ...] = (), place: str | None = None) -> None:
        self.reason = reason
        self.path = path
        self.place = place
        prefix = ": ".join(part for part in (place, path_text(path)) if part)
        super().__init__(f"{prefix}: {reason}" if prefix else reason)


class ConfigError(LocatedError):
    """A component config is wrong."""


class BuildError(LocatedError):
    """A well-formed config whose model cannot be built: a constructor failed, say."""


class NotPortableError(BuildError):
    """A module cannot be handed out without its code: names the module, the reason and the remedy."""


class GraphExecutionError(ModelFactoryError):
    """A graph refuses its inputs, a step's result, or arguments that a kernel would trust.

    An exception that is raised inside a step (by torch, a hook, a child) is none: the exception passes through as the
    same object, with a note of the step's number and call.
    """


class CallSignatureError(GraphExecutionError):
    """There is no program for this way of calling a module, and none could be recorded."""


class OutdatedBuildError(CallSignatureError):
    """A module needs a new program, and the server would build another module by now: other code or other files."""


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
    """A descriptor, program or blob breaks its format or a limit."""


class IntegrityError(FormatError):
    """Content does not match its digest or its declared size."""


class RangeError(FormatError):
    """Bytes of a blob were asked for that lie outside it."""


class SourceError(ModelFactoryError):
    """A model needs source of the server's that the trainer has not said it trusts, or that cannot be used here."""


class StoreError(ModelFactoryError):
    """A store or cache folder cannot be read or written."""


class MissingBlobError(StoreError):
    """The server's store does not have a blob that was asked for: build again."""


class ServerError(ModelFactoryError):
    """The server refused or failed a request, or answered against its contract; or the text of its address is none."""


class LimitError(ServerError):
    """The request is over a limit of the server."""


class BusyError(LimitError):
    """Too much is in progress or waits already: the same request may be answered later."""


class AccessError(ServerError):
    """The server does not accept who asks, or a token or certificate cannot be used."""


class UnavailableError(ServerError):
    """The server cannot be reached, is stopping, or went away during a request."""


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
"""What a forward raises, and the error of its refusal; most specific first."""


def refused_call(text: str, raised: BaseException) -> CallSignatureError:
    """Return the error for a call that a forward refuses, as a subclass of the common class that the forward raised.

    >>> isinstance(refused_call("sizes differ", ValueError()), ValueError)
    True
    """
    return next((error for kind, error in _REFUSALS if isinstance(raised, kind)), CallSignatureError)(text)


def plain_text(error: BaseException | str) -> str:
    """What an error says, without the frames of C++ that torch adds to some: they have addresses and paths."""
    return _FRAMES.split(str(error), maxsplit=1)[0]


def path_text(path: tuple[str | int, ...]) -> str:
    """Write a config path the way users write it: ``model.graph.inputs[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
