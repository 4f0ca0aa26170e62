"""What is around a forward while it is recorded: as it is in use or, where a program could not have it, refused."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function

from model_factory.errors import NotPortableError
from model_factory_server.export.conditions.symbols import DecisionShapeEnv

_SQRT = math.sqrt
_APPLY: Any = vars(Function)["apply"]


@contextmanager
def hide_tracing(shape_env: DecisionShapeEnv) -> Iterator[None]:
    """Have a forward meet, while this is entered, what it meets in use.

    Its tensors are no fake ones if it asks: some forwards do something else where they are traced. The text of a size
    is that of a number; who asks for it, as for a key, decides by it. A size itself is no key, as torch has it: caches
    beyond the forward would keep symbols, and einops asks.

    Raises:
        NotPortableError: the forward has gradients of its own, or random numbers that are not torch's.
    """

    class Hidden(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return shape_env.inside_op > 0 and isinstance(instance, FakeTensor)

    symbol: Any = torch.SymInt.__repr__

    def text(size: torch.SymInt) -> str:
        return symbol(size) if shape_env.inside_op else str(int(size))

    subclasses: Any = torch._subclasses  # noqa: SLF001  where libraries look FakeTensor up
    with (
        patch.object(subclasses, "FakeTensor", Hidden("FakeTensor", (), {})),
        patch.object(torch.SymInt, "__str__", text),
        patch.object(torch.SymInt, "__repr__", text),
        patch.object(Function, "apply", classmethod(_refuse_function)),
        patch.object(math, "sqrt", _sqrt),
        _only_torch_draws(),
    ):
        yield


def _sqrt(number: Any) -> Any:
    """In the place of ``math.sqrt``, which would make a plain number of a size."""
    return torch.sym_sqrt(number) if isinstance(number, torch.SymInt | torch.SymFloat) else _SQRT(number)


def _refuse_function(cls: type, *args: Any, **kwargs: Any) -> Any:
    """In the place of ``torch.autograd.Function.apply``; torch's own, as checkpointing has, are let through."""
    if cls.__module__.partition(".")[0] == "torch":
        return _APPLY.__func__(cls, *args, **kwargs)
    raise NotPortableError(
        f"its forward calls {cls.__module__}.{cls.__qualname__}, an autograd.Function, whose backward a program cannot "
        "carry. Remedy: write it with torch's ops; a straight-through gradient is x + (y - x).detach()"
    )


@contextmanager
def every_generator_seeded(seed: int) -> Iterator[None]:
    """Seed torch's, Python's and NumPy's generators for a while; all are as before afterwards.

    A forward may draw from each: two runs that are to be compared begin alike.
    """
    numpy_random: Any = sys.modules.get("numpy.random")
    python_state, numpy_state = random.getstate(), None if numpy_random is None else numpy_random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            if numpy_random is not None:
                numpy_random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        if numpy_random is not None:
            numpy_random.set_state(numpy_state)


@contextmanager
def _only_torch_draws() -> Iterator[None]:
    """Refuse random numbers of Python's and NumPy's: two runs may agree by chance."""
    numpy_random: Any = sys.modules.get("numpy.random")

    def states() -> tuple[Any, ...]:
        return random.getstate(), "" if numpy_random is None else str(numpy_random.get_state())

    before = states()
    yield
    if states() != before:
        raise NotPortableError(
            "its forward draws random numbers of Python's or NumPy's, which a program cannot. Remedy: draw them with "
            "torch"
        )
