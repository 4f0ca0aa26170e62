"""The form of a block's result: containers, dtypes, and sizes as formulas in the sizes of the arguments.

A recording of a block notes the form. A caller's recording makes a fake result from the form, without another run of
the block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import sympy
import torch

from model_factory_server.export.conditions.symbolic_sizes import empty_in_order, memory_order
from model_factory_server.export.conditions.symbols import SymbolTable
from model_factory_server.export.torch_private import formula, recorded_size

Form: TypeAlias = Any
"""``TensorForm``, None, or a list, tuple or dict of forms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorForm:
    """A tensor of a result."""

    dtype: torch.dtype
    """Dtype."""
    device: torch.device
    """Device."""
    sizes: tuple[Any, ...]
    """Formulas in the sizes of the arguments."""
    order: tuple[int, ...]
    """Axes from the innermost in memory to the outermost."""
    gaps: tuple[int, ...]
    """Axes with gaps in memory between the entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultForm:
    """The form of a result, for calls with sizes that meet conditions."""

    form: Form
    """Containers and tensors."""
    sizes: Mapping[Any, tuple[int, int]]
    """Number of the argument's tensor and axis, by symbol in the formulas."""
    fixed: tuple[tuple[int, int, int], ...]
    """Number of the argument's tensor, axis and size, where the block was recorded for one size only."""
    conditions: tuple[Any, ...]
    """Formulas with a truth value; all must hold."""

    def holds(self, shapes: Sequence[Sequence[Any]]) -> bool:
        """Whether the sizes of a call, symbolic or not, meet the conditions."""
        if any(recorded_size(shapes[index][axis]) != size for index, axis, size in self.fixed):
            return False
        numbers = {
            symbol: sympy.Integer(recorded_size(shapes[index][axis])) for symbol, (index, axis) in self.sizes.items()
        }
        return all(condition.xreplace(numbers) == sympy.true for condition in self.conditions)

    def require(self, shapes: Sequence[Sequence[Any]], symbols: SymbolTable) -> None:
        """Make the conditions a part of the caller's recording."""
        for index, axis, size in self.fixed:
            symbols.require(sympy.Eq(symbols.in_inputs(_formula(shapes[index][axis])), size))
        known = self._formulas(shapes, symbols)
        for condition in self.conditions:
            symbols.require(condition.xreplace(known))

    def result(
        self,
        shapes: Sequence[Sequence[Any]],
        symbols: SymbolTable,
        make: Callable[[TensorForm, list[Any]], torch.Tensor],
    ) -> Any:
        """Return a result with ``make(form, sizes)`` for each tensor, by the sizes of a call."""
        return _with_tensors(self.form, self._formulas(shapes, symbols), make)

    def sized(self, shapes: Sequence[Sequence[int]], make: Callable[[TensorForm, list[int]], torch.Tensor]) -> Any:
        """Return a result with ``make(form, sizes)`` for each tensor, for a call with numbers as sizes."""
        known = {symbol: sympy.Integer(shapes[index][axis]) for symbol, (index, axis) in self.sizes.items()}
        return _with_tensors(self.form, known, lambda form, sizes: make(form, [int(size) for size in sizes]))

    def _formulas(self, shapes: Sequence[Sequence[Any]], symbols: SymbolTable) -> dict[Any, Any]:
        """The sizes of a call as formulas in sizes of the caller's inputs."""
        return {
            symbol: symbols.in_inputs(_formula(shapes[index][axis])) for symbol, (index, axis) in self.sizes.items()
        }


def _formula(size: Any) -> Any:
    return formula(size) if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _with_tensors(form: Form, known: Mapping[Any, Any], make: Callable[[TensorForm, list[Any]], torch.Tensor]) -> Any:
    if isinstance(form, TensorForm):
        return make(form, [size.xreplace(known) for size in form.sizes])
    if isinstance(form, dict):
        return {key: _with_tensors(item, known, make) for key, item in form.items()}
    if isinstance(form, list | tuple):
        return type(form)(_with_tensors(item, known, make) for item in form)
    return form


def fake_tensor(form: TensorForm, sizes: Sequence[Any]) -> torch.Tensor:
    """Return an empty tensor of a form, with the given sizes."""
    return empty_in_order(sizes, form.order, form.dtype, form.device, form.gaps)


def result_form(result: Any, inputs: Sequence[torch.Tensor], names: Sequence[str], symbols: SymbolTable) -> Any:
    """Return the form of a recorded block's result, or a text with the reason against a form.

    Args:
        result: Result of the forward, with fake tensors.
        inputs: Fake tensors of the arguments, in order.
        names: Names of these tensors in the program.
        symbols: Symbols of the recording.
    """
    try:
        form = _form(result, partial(_tensor_form, symbols=symbols), inside=False)
    except _NoFormError as error:
        return str(error)
    positions = {name: index for index, name in enumerate(names)}
    return ResultForm(
        form=form,
        sizes={symbol: (positions[dim.name], dim.axis) for symbol, dim in symbols.inputs().items()},
        fixed=tuple(
            (index, axis, size)
            for index, tensor in enumerate(inputs)
            for axis, size in enumerate(tensor.shape)
            if type(size) is int
        ),
        conditions=tuple(symbols.input_conditions()),
    )


def reason_against(result: Any) -> str:
    """The reason against a form for a result with real tensors, or an empty text if its containers allow a form.

    Example:
        >>> reason_against([torch.ones(1), None]), reason_against({"count": 1})
        ('', 'its result has a int, and not only tensors')
    """
    try:
        _form(result, lambda _tensor: None, inside=False)
    except _NoFormError as error:
        return str(error)
    return ""


class _NoFormError(Exception):
    """A result cannot be described."""


def _form(value: Any, of_tensor: Callable[[torch.Tensor], Form], *, inside: bool) -> Form:
    if isinstance(value, torch.Tensor):
        return of_tensor(value)
    if value is None and inside:
        return None
    if type(value) in {list, tuple} and value:
        return type(value)(_form(item, of_tensor, inside=True) for item in value)
    if type(value) is dict and value and all(type(key) is str for key in value):
        return {key: _form(item, of_tensor, inside=True) for key, item in value.items()}
    raise _NoFormError(f"its result has a {type(value).__name__}, and not only tensors")


def _tensor_form(tensor: torch.Tensor, symbols: SymbolTable) -> TensorForm:
    found = memory_order(tensor)
    if found is None:
        raise _NoFormError("its result has several entries in the same memory")
    order, gaps = found
    sizes = [symbols.in_inputs(_formula(size)) for size in tensor.shape]
    if any(size is None for size in sizes):
        raise _NoFormError("sizes of its result depend on values")
    return TensorForm(dtype=tensor.dtype, device=tensor.device, sizes=tuple(sizes), order=order, gaps=gaps)
