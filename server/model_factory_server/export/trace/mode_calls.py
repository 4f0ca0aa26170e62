"""Grad and autocast modes in a forward: regions with another mode become steps, and reads of a mode are refused.

A region ends with the mode before the region. If the mode before was the caller's, the step at the end has no
argument, since a trainer may call in another mode than the recorded one. ``export.torch_patches`` installs the
replacements of this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from model_factory.errors import NotPortableError
from model_factory.program.ir import OpCall, Step
from model_factory.program.ops import SET_AUTOCAST_ENABLED

AUTOCAST_REFUSAL = (
    "the forward changes the autocast mode, and programs run in the caller's mode. Remedy: turn autocast on around the "
    "call of the model"
)
_MAY_READ_MODES = frozenset({"torch", "model_factory", "model_factory_server"})
"""Packages whose code may read modes."""


class ModeCalls:
    """Adds changes of the autocast mode to the steps of a tape, and marks steps back to the caller's grad mode."""

    def __init__(self, steps: list[Step], is_paused: Callable[[], bool]) -> None:
        """Add to ``steps``, unless ``is_paused()``."""
        self._steps = steps
        self._is_paused = is_paused
        self._grad_is_callers = True
        self._without_autocast = 0

    def begin_grad_region(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for the method at the beginning of a region with another grad mode."""

        def wrapped(region: Any, *args: Any, **kwargs: Any) -> Any:
            region.ends_with_callers = self._grad_is_callers and not self._is_paused()
            result = begin(region, *args, **kwargs)
            self._grad_is_callers = self._grad_is_callers and self._is_paused()
            return result

        return wrapped

    def end_grad_region(self, end: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for the method at the end of a region with another grad mode."""

        def wrapped(region: Any, *args: Any) -> Any:
            result = end(region, *args)
            if region.ends_with_callers:
                last = self._steps[-1]  # the step that sets the mode before the region
                assert isinstance(last, OpCall)
                self._steps[-1] = OpCall(name=last.name, out=last.out)
                self._grad_is_callers = True
            return result

        return wrapped

    def make_autocast(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``autocast.__init__`` to note the wanted state, before torch changes the state."""

        def wrapped(
            region: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
        ) -> None:
            region.is_wanted = enabled
            make(region, device_type, dtype, enabled, cache_enabled)

        return wrapped

    def enter_autocast(self, enter: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``autocast.__enter__``; only a region without autocast is recorded."""

        def wrapped(region: Any) -> Any:
            if not self._is_paused():
                # The region of a decorator was made before the recording; on a CPU torch leaves the wanted state alone.
                if getattr(region, "is_wanted", region._enabled or region.device != "cpu"):  # noqa: SLF001
                    raise NotPortableError(AUTOCAST_REFUSAL)
                self._without_autocast += 1
                if self._without_autocast == 1:
                    self._note(False)
            return enter(region)

        return wrapped

    def leave_autocast(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``autocast.__exit__``."""

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


def refuse_mode_read(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a function to limit the function ``name`` to callers in torch and this package."""

    def replace(read: Callable[..., Any]) -> Callable[..., Any]:
        def ask_if_allowed(*args: Any, **kwargs: Any) -> Any:
            caller = str(sys._getframe(1).f_globals.get("__name__", ""))  # noqa: SLF001  there is no other way
            if caller.partition(".")[0] not in _MAY_READ_MODES:
                raise NotPortableError(
                    f"the forward calls {name}(), and the result can differ on the trainer. Remedy: pass the result "
                    "as an argument of the forward"
                )
            return read(*args, **kwargs)

        return ask_if_allowed

    return replace
