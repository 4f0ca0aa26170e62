"""Grad and autocast modes amid a forward: regions that set them become steps, and what asks for them is refused.

A region ends with the mode that was before it. Where that was the mode of whoever called the forward, the step that
ends it says so, by having no argument: a trainer may call in another mode than a forward is recorded in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.amp import autocast_mode
from torch.autograd import grad_mode

from model_factory.errors import NotPortableError
from model_factory.program.ir import OpCall, Step
from model_factory.program.ops import SET_AUTOCAST_ENABLED

_GRAD_REGIONS = ((grad_mode.no_grad, "__enter__"), (grad_mode.enable_grad, "__enter__"))
_SETTER = (grad_mode.set_grad_enabled, "__init__")  # sets the mode when it is made
_QUESTIONS = (
    *((torch, name) for name in ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled")),
    *((torch, name) for name in ("is_autocast_cpu_enabled", "get_autocast_dtype", "get_autocast_gpu_dtype")),
    *((torch.distributed, name) for name in ("is_initialized", "get_rank", "get_world_size")),
)
_MAY_ASK = frozenset({"torch", "model_factory", "model_factory_server"})


@contextmanager
def noted_modes(steps: list[Step], is_paused: Callable[[], bool]) -> Iterator[None]:
    """Note in ``steps``, unless ``is_paused``, what is done with modes while this is entered.

    What sets the grad mode is a step already when it was set.
    """
    regions = _Regions(steps, is_paused)
    with ExitStack() as stack:
        for region, begins in (*_GRAD_REGIONS, _SETTER):
            stack.enter_context(patch.object(region, begins, regions.beginning(getattr(region, begins))))
            stack.enter_context(patch.object(region, "__exit__", regions.ending(region.__exit__)))
        for name in ("__init__", "__enter__", "__exit__"):
            wrapped = getattr(regions, f"autocast{name}")(getattr(autocast_mode.autocast, name))
            stack.enter_context(patch.object(autocast_mode.autocast, name, wrapped))
        for owner, name in _QUESTIONS:
            if hasattr(owner, name):  # torch.distributed has none of them where it is not built in
                asking = _refusing(getattr(owner, name), f"{owner.__name__}.{name}")
                stack.enter_context(patch.object(owner, name, asking))
        yield


class _Regions:
    """The regions that a forward is in."""

    def __init__(self, steps: list[Step], is_paused: Callable[[], bool]) -> None:
        self._steps = steps
        self._is_paused = is_paused
        self._grad_is_callers = True
        self._without_autocast = 0

    def beginning(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        """``begin`` of a region that sets the grad mode."""

        def wrapped(region: Any, *args: Any, **kwargs: Any) -> Any:
            region.ends_with_callers = self._grad_is_callers and not self._is_paused()
            result = begin(region, *args, **kwargs)
            self._grad_is_callers = self._grad_is_callers and self._is_paused()
            return result

        return wrapped

    def ending(self, end: Callable[..., Any]) -> Callable[..., Any]:
        """``end`` of such a region."""

        def wrapped(region: Any, *args: Any) -> Any:
            result = end(region, *args)
            if region.ends_with_callers:
                last = self._steps[-1]  # which set the mode that was before
                assert isinstance(last, OpCall)
                self._steps[-1] = OpCall(name=last.name, out=last.out)
                self._grad_is_callers = True
            return result

        return wrapped

    def autocast__init__(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """``make`` of a region; without a GPU, torch takes the one that is asked for on a GPU for none."""

        def wrapped(
            region: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
        ) -> None:
            region.was_asked_for = enabled
            make(region, device_type, dtype, enabled, cache_enabled)

        return wrapped

    def autocast__enter__(self, enter: Callable[..., Any]) -> Callable[..., Any]:
        """``enter`` of a region."""

        def wrapped(region: Any) -> Any:
            if not self._is_paused():
                # A decorator's region was made before this was entered; on a CPU it is what it was asked to be.
                if getattr(region, "was_asked_for", region._enabled or region.device != "cpu"):  # noqa: SLF001
                    raise NotPortableError("its forward changes the autocast mode, which a program cannot carry")
                self._without_autocast += 1
                if self._without_autocast == 1:
                    self._note(False)
            return enter(region)

        return wrapped

    def autocast__exit__(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        """``leave`` of a region."""

        def wrapped(region: Any, *args: Any) -> Any:
            result = leave(region, *args)
            if not self._is_paused():
                self._without_autocast -= 1
                if not self._without_autocast:
                    self._note()
            return result

        return wrapped

    def _note(self, *args: bool) -> None:
        self._steps.append(OpCall(name=SET_AUTOCAST_ENABLED, args=args, out=f"v{len(self._steps)}"))


def _refusing(ask: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``ask``, for torch and the recording alone."""

    def asked(*args: Any, **kwargs: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__", ""))  # noqa: SLF001  there is no other way
        if caller.partition(".")[0] not in _MAY_ASK:
            raise NotPortableError(f"its forward asks {name}(), which can differ where the program is run")
        return ask(*args, **kwargs)

    return asked
