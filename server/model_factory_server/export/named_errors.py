"""Errors with the path and class of the block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from model_factory.errors import BuildError, CallSignatureError, ModelFactoryError
from model_factory.program.runtime.graph_model import GRAPH_MODULES

_Named = TypeVar("_Named", bound=ModelFactoryError)


def named(path: str, block: nn.Module, error: _Named) -> _Named:
    """Return an error with path and class of a block before the text.

    Example:
        >>> named("graph_modules.head", nn.ReLU(), BuildError("no memory"))
        BuildError('head (ReLU): no memory')
    """
    where = path.removeprefix(f"{GRAPH_MODULES}.") or "the model"
    return type(error)(f"{where} ({type(block).__name__}): {error}")


@contextmanager
def naming(path: str, block: nn.Module) -> Iterator[None]:
    """Put path and class of a block before the text of every error inside."""
    try:
        yield
    except (BuildError, CallSignatureError) as error:
        raise named(path, block, error) from error
