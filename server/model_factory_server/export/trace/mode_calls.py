"""Modes of the caller in a forward: regions with another mode become steps, and reads of a mode are conditions.

A region ends with the mode before the region. If the mode before was the caller's, the step at the end has no
argument, since a trainer may call in another mode than the recorded one. ``export.torch_patches`` installs the
replacements of this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch

from model_factory.errors import NotPortableError
from model_factory.program.ir import OpCall, Step
from model_factory.program.ops import AUTOCAST_KINDS, SET_AUTOCAST_ENABLED
from model_factory.program.runtime.caller_modes import AUTOCAST, DISTRIBUTED, GRAD, IS_CUDA, REQUIRES_GRAD, mode_value
from model_factory_server.export.conditions.module_reads import is_library
from model_factory_server.export.conditions.symbols import DecisionShapeEnv
from model_factory_server.export.torch_private import wants_autocast

AUTOCAST_REFUSAL = (
    "the forward changes the autocast mode, and programs run in the caller's mode. Remedy: turn autocast on around the "
    "call of the model"
)
GPU = torch.device("cuda", 0)
"""The device of every tensor, in a run for a trainer with a GPU. The recording itself stays on the CPU."""
Ask = Callable[..., Any]

_CPU = torch.device("cpu")
_NUMBER_OF_GPU = (
    "the forward asks for the number of its GPU, and each GPU has another one. Remedy: ask for the kind, x.device.type"
)
_GPU_NAMES = (GPU.type, str(GPU))


class CallerDevice(str):
    """A device that reports each look at its kind, index or text: only looks can decide anything in the forward.

    Most forwards only pass the device on, as in ``torch.arange(n, device=x.device)``. torch accepts a text as a device,
    and ``torch.device`` has no subclasses, so the device is a text in the place of a ``torch.device``. Methods of
    texts are hidden. All tensors of a caller are on the same device.

    Example:
        >>> looks = []
        >>> device = CallerDevice(torch.device("cpu"), lambda: looks.append("look") or torch.device("cpu"))
        >>> torch.zeros(1, device=device).device, looks
        (device(type='cpu'), [])
        >>> device.type, looks
        ('cpu', ['look'])
    """

    _look: Callable[[], torch.device]

    def __new__(cls, found: torch.device, look: Callable[[], torch.device]) -> CallerDevice:
        """Make the device ``found`` of a recording; ``look()`` returns the caller's device."""
        device = super().__new__(cls, found)
        device._look = look
        return device

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The class for ``isinstance``."""
        return torch.device

    @property
    def type(self) -> str:
        """Kind of the device."""
        return self._look().type

    @property
    def index(self) -> int | None:  # type: ignore[override]  # of a device, not of a text
        """Number of the device.

        Raises:
            NotPortableError: the device is a GPU, and each GPU has another number.
        """
        found = self._look()
        if found.type != "cpu":
            raise NotPortableError(_NUMBER_OF_GPU)
        return found.index

    def __eq__(self, other: object) -> bool:
        if type(other) is CallerDevice:
            return True
        if type(other) is str:
            raise NotPortableError("the forward compares a device with a text. Remedy: compare x.device.type")
        found = self._look()
        if found.type != "cpu" and isinstance(other, torch.device) and other.type == found.type:
            raise NotPortableError(_NUMBER_OF_GPU)
        return found == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._look())

    def __str__(self) -> str:
        return str(self._look())

    def __repr__(self) -> str:
        return repr(self._look())

    def __format__(self, spec: str) -> str:
        return format(str(self._look()), spec)

    def __copy__(self) -> CallerDevice:
        return self

    def __deepcopy__(self, memo: Any) -> CallerDevice:
        return self

    def __enter__(self) -> Any:
        return _CPU.__enter__()  # the recording stays on the CPU

    def __exit__(self, *error: object) -> Any:
        return _CPU.__exit__(*error)


def _absent(_device: CallerDevice) -> Any:
    raise AttributeError("a torch.device has no methods of a text")


for _name in vars(str).keys() - vars(object).keys() - vars(CallerDevice).keys():
    if not _name.startswith("__"):
        setattr(CallerDevice, _name, property(_absent))
    elif not _name.startswith("__r"):  # of "%s" % device
        setattr(CallerDevice, _name, None)


class ModeCalls:
    """Adds changes of the autocast mode to the steps of a tape, and marks steps back to the caller's grad mode."""

    def __init__(self, steps: list[Step], is_paused: Callable[[], bool], is_forward: Callable[[], bool]) -> None:
        """Add to ``steps``, unless ``is_paused()``; a grad region is one of torch's own unless ``is_forward()``."""
        self._steps = steps
        self._is_paused = is_paused
        self._is_forward = is_forward
        self._grad_is_callers = True
        self._without_autocast = 0
        self.assumed: Mapping[str, bool | str] = {}
        """Answers about modes of the caller, in the place of the present modes."""
        self.noted: dict[str, bool | str] = {}
        """Modes of the caller, read by the forward."""

    def read(self, name: str) -> bool | str:
        """Return a mode of the caller, and make the mode a condition of the program.

        Inside a region of the forward with another mode, the mode is the region's, and no condition.
        """
        value = name != DISTRIBUTED and mode_value(name, _CPU)  # a recording runs in one process
        if (name == GRAD and not self._grad_is_callers) or (name.startswith(AUTOCAST) and self._without_autocast):
            return value
        return self.noted.setdefault(name, self.assumed.get(name, value))

    def device(self, found: torch.device) -> CallerDevice:
        """Return the device of the caller's tensors, for a tensor of the recording on the device ``found``.

        A look at the device makes the kind of the device a condition of the program.
        """
        return CallerDevice(found, lambda: GPU if self.read(IS_CUDA) else found)

    def note_devices(self, env: DecisionShapeEnv, original: property) -> property:
        """Return a replacement for the device of a fake tensor: the forward's own code gets the caller's device."""

        def device(tensor: torch.Tensor) -> torch.device | CallerDevice:
            found: torch.device = original.__get__(tensor)
            return self.device(found) if env.in_forward and not self._is_paused() else found

        return property(device)

    def note_processes(self, original: property) -> property:
        """Return a replacement for the group of all processes, which exists if there are several processes."""

        def world(cls: Any) -> Any:
            frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  there is no other way
            while frame is not None and str(frame.f_globals.get("__name__")).startswith("torch.distributed"):
                frame = frame.f_back
            if self._is_paused() or frame is None or is_library(frame):
                return original.__get__(cls)
            return self.read(DISTRIBUTED) or None

        return property(world, original.fset)

    def on_cpu(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a torch call with the CPU in the place of the caller's device."""
        if func is torch.device:
            return args, kwargs
        without = partial(_on_cpu, names=_GPU_NAMES if self.assumed.get(IS_CUDA) else ())
        return tuple(map(without, args)), {key: without(value) for key, value in kwargs.items()}

    def note_requires_grad(self, inputs: Iterable[str], *, computed: bool) -> None:
        """Make conditions of everything that decides whether a value from ``inputs`` requires gradients."""
        for name in inputs:
            self.read(f"{REQUIRES_GRAD}{name}")
        if computed:
            self.noted.setdefault(GRAD, self.assumed.get(GRAD, True))

    @contextmanager
    def of_backward(self) -> Iterator[dict[str, bool | str]]:
        """Note modes in another table while this is entered: a backward runs later, in modes of its own."""
        before = self.noted, self._grad_is_callers, self._without_autocast
        self.noted, self._grad_is_callers, self._without_autocast = {}, True, 0
        try:
            yield self.noted
        finally:
            self.noted, self._grad_is_callers, self._without_autocast = before

    def ask(self, mode: Callable[..., str], convert: Callable[[Any], Any]) -> Callable[[Ask], Ask]:
        """Return a function to replace a function of torch that returns a mode.

        Args:
            mode: Returns the name of the mode, for the arguments of a call.
            convert: Returns the function's result for a value of the mode.
        """

        def replace(original: Ask) -> Ask:
            def asked(*args: Any, **kwargs: Any) -> Any:
                if self._is_paused() or is_library(sys._getframe(1)):  # noqa: SLF001  there is no other way
                    return original(*args, **kwargs)
                return convert(self.read(mode(*args, **kwargs)))

            return asked

        return replace

    def begin_grad_region(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for the method at the beginning of a region with another grad mode."""

        def wrapped(region: Any, *args: Any, **kwargs: Any) -> Any:
            region.ends_with_callers = self._grad_is_callers and self._is_forward()
            result = begin(region, *args, **kwargs)
            self._grad_is_callers = self._grad_is_callers and not self._is_forward()
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

    def enter_autocast(self, enter: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement for ``autocast.__enter__``; only a region without autocast is recorded."""

        def wrapped(region: Any) -> Any:
            if not self._is_paused():
                if wants_autocast(region):
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
            if not is_library(sys._getframe(1)):  # noqa: SLF001  there is no other way
                raise NotPortableError(
                    f"the forward calls {name}(), and the result can differ on the trainer. Remedy: pass the result "
                    "as an argument of the forward"
                )
            return read(*args, **kwargs)

        return ask_if_allowed

    return replace


def _on_cpu(value: Any, names: Collection[str]) -> Any:
    """The CPU in the place of the caller's device, and of a device with one of ``names``."""
    is_name = type(value) is str or type(value) is torch.device
    return _CPU if type(value) is CallerDevice or (is_name and str(value) in names) else value


def autocast_state() -> tuple[Any, ...]:
    """The present autocast modes of all kinds of devices."""
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in AUTOCAST_KINDS)
