"""Checks for ops whose kernels trust the arguments.

A program comes from an untrusted peer: without the checks, a program could read or write outside of a tensor, or end
the process. A check covers what the kernel of the gradient reads, too: a tensor that a kernel trusts is checked once,
in the forward, and the program has no way to change the tensor in between unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch

from model_factory.errors import GraphExecutionError
from model_factory.limits import MAX_PARTS
from model_factory.program.checks.values import require
from model_factory.program.checks.windows import (
    convolve,
    convolve_transposed,
    given,
    max_pool,
    slide,
    with_argument,
)
from model_factory.program.ops import OPS

Op = Callable[..., Any]

MAX_COMBINATION = 1024
"""Elements of one combination, and order of ``multigammaln``: the work grows with the number."""

_NUMBERS = (torch.Tensor, bool, int, float)


def check_classes(log_probs: torch.Tensor, targets: torch.Tensor) -> None:
    """Check the targets of a CTC loss, which the kernel uses as indices. The kernel itself checks the lengths.

    Raises:
        GraphExecutionError: a target is no class.

    Example:
        >>> check_classes(torch.zeros(50, 1, 20), torch.tensor([[0, 19]]))
    """
    classes = log_probs.shape[-1]
    holds = ((targets >= 0) & (targets < classes)).all()
    require(holds, "the targets of a CTC loss must be classes, 0 to {}", classes - 1)


def check_bag(
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    offsets: torch.Tensor | None = None,
    include_last_offset: bool = False,
) -> None:
    """Check indices and offsets of an embedding bag; the kernels of the forward and of the backward use both.

    Raises:
        GraphExecutionError: the indices are no integers, an index is no row of ``weight``, there are indices and no
            offsets, the offsets do not ascend from 0, or the last of included offsets is not the end.

    Example:
        >>> check_bag(torch.tensor([0, 4]), torch.zeros(5, 3), torch.tensor([0, 1]))
    """
    check_kind_of_indices(input)
    rows, end = weight.shape[0], input.numel()
    if input.device.type == "cpu":  # the kernels of CUDA check indices themselves
        holds = ((input >= 0) & (input < rows)).all()
        require(holds, "the indices of an embedding bag must be rows of the weight, 0 to {}", rows - 1)
    if offsets is None:
        return
    if not offsets.numel():
        if end:
            raise GraphExecutionError(f"an embedding bag has {end} indices and no offsets")
        return
    ascend = (offsets[0] == 0) & (offsets[-1] <= end) & (offsets.diff() >= 0).all()
    require(ascend, "the offsets of an embedding bag must ascend from 0 to at most {}", end)
    if include_last_offset:
        holds = (offsets[-1] == end) & (not end or offsets.numel() > 1)
        require(holds, "the last of the offsets of an embedding bag must be {}, the end of the indices", end)


def check_kind_of_indices(indices: torch.Tensor) -> None:
    """Check that the indices of an embedding bag are integers: torch would take other indices for the weight.

    Raises:
        GraphExecutionError: the indices are numbers with fractions.

    Example:
        >>> check_kind_of_indices(torch.tensor([0, 4]))
    """
    if indices.is_floating_point() or indices.is_complex():
        raise GraphExecutionError(f"the indices of an embedding bag must be integers; the indices are {indices.dtype}")


def _attention(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Attend; a kernel divides by the number of heads of keys and values, if queries have more heads."""
    if given(args, kwargs, 7, "enable_gqa"):
        for position, name in enumerate(("query", "key", "value")):
            if 0 in given(args, kwargs, position, name).shape[-3:-2]:
                raise GraphExecutionError(f"an attention has a {name} without heads")
    return op(*args, **kwargs)


def _ctc_loss(op: Op, log_probs: torch.Tensor, targets: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    check_classes(log_probs, targets)
    return op(log_probs, targets.contiguous(), *args, **kwargs)  # the kernel reads beyond expanded targets


def _embedding_bag(op: Op, *args: Any, **kwargs: Any) -> Any:
    indices, weight = given(args, kwargs, 0, "input"), given(args, kwargs, 1, "weight")
    include_last_offset = bool(given(args, kwargs, 9, "include_last_offset"))
    check_bag(indices, weight, given(args, kwargs, 2, "offsets"), include_last_offset)
    return op(*args, **kwargs)


MAX_EMPTY_MATRICES = 1 << 20
"""Matrices without elements in one tensor: LAPACK is called for each, and the number takes no memory."""


def _matrices(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Compute with matrices, of which a tensor without elements can hold any number."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and not value.numel():
            count = math.prod(value.shape[:-2])
            if count > MAX_EMPTY_MATRICES:
                raise GraphExecutionError(
                    f"a step computes with {count} matrices without elements; at most {MAX_EMPTY_MATRICES} are allowed"
                )
    return op(*args, **kwargs)


def _finite(op: Op, A: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: N803  torch's own name
    require(A.isfinite().all(), "eigenvalues need a finite matrix; the matrix holds an infinity or a NaN")
    return _matrices(op, A, *args, **kwargs)


def _eigenvectors(op: Op, A: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: N803  torch's own name
    """Find eigenvectors; for a real matrix, torch writes beyond its result if LAPACK does not converge."""
    if not A.is_complex():
        raise GraphExecutionError(
            f"torch.linalg.eig of a {A.dtype} matrix is not allowed, since torch may write beyond its result. Remedy: "
            "A.to(torch.complex128), or torch.linalg.eigh of a symmetric matrix"
        )
    return _finite(op, A, *args, **kwargs)


def _least_squares(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Solve a system; LAPACK reads beyond a matrix without elements."""
    for position, names in enumerate((("A", "input"), ("B", "b"))):
        shape = given(args, kwargs, position, *names).shape
        if 0 in shape:
            raise GraphExecutionError(f"a least squares problem has a matrix of the shape {tuple(shape)}")
    return op(*args, **kwargs)


_NEAR = 1e6
_OUTSIDE = 16.0


def _grid_sample(op: Op, input: torch.Tensor, grid: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """Sample; on a CPU, replace infinite, huge and NaN positions by positions outside of the image.

    The kernels of CUDA compare positions with the image's size. The copy is the kernel's own: no step changes it.
    """
    if grid.device.type == "cpu" and grid.is_floating_point():
        grid = torch.where(grid.abs() < _NEAR, grid, torch.where(grid > 0, _OUTSIDE, -_OUTSIDE).to(grid.dtype))
    return op(input, grid, *args, **kwargs)


def _grouped(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Multiply groups of rows by matrices; the ends of the groups ascend from 0 to at most the number of rows.

    Kernels of CUDA trust the ends, and kernels of a CPU cut like Python. A comparison would wait for the GPU, so other
    ends are replaced. The copy is the kernel's own: no step changes it.
    """
    ends = given(args, kwargs, 2, "offs")
    if not isinstance(ends, torch.Tensor) or ends.device.type == "cpu":
        return op(*args, **kwargs)
    rows, matrices = given(args, kwargs, 0, "input"), given(args, kwargs, 1, "mat2")
    last = matrices.shape[-1] if rows.dim() == 3 else rows.shape[-1 if matrices.dim() == 2 else 0]
    return with_argument(op, args, kwargs, 2, "offs", ascending(ends, last))


def ascending(ends: torch.Tensor, last: int) -> torch.Tensor:
    """Return ends of groups that ascend from 0 to at most ``last``; right ends unchanged.

    Example:
        >>> ascending(torch.tensor([2, 1, 9], dtype=torch.int32), 6)
        tensor([2, 2, 6], dtype=torch.int32)
    """
    return ends.clamp(0, last).cummax(0).values


def _median(op: Op, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """Find a median; the kernel reads beyond expanded tensors."""
    return op(input.contiguous(), *args, **kwargs)


def _pdist(op: Op, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """Compute distances; without rows, return no distances without a call of the kernels."""
    if input.dim() == 2 and not input.shape[0]:
        return input.sum(1)
    return op(input, *args, **kwargs)


def _divide(op: Op, input: Any, other: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """Divide; the least integer by -1 is the least integer, as in two's complement.

    A processor ends the process instead.
    """
    return op(input, _safe_divisor(input, other), *args, **kwargs)


def _divide_reversed(op: Op, divisor: Any, dividend: Any) -> Any:
    return op(_safe_divisor(dividend, divisor), dividend)


def _safe_divisor(dividend: Any, divisor: Any) -> Any:
    """Return the divisor with 1 in the place of -1 where the quotient would overflow."""
    if type(divisor) is float or (type(divisor) is int and divisor != -1):
        return divisor
    tensors = [item for item in (dividend, divisor) if isinstance(item, torch.Tensor)]
    if not tensors or any(tensor.device.type != "cpu" for tensor in tensors):
        return divisor
    if any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors):
        return divisor
    kind = torch.result_type(dividend, divisor)
    if kind.is_floating_point or not kind.is_signed:
        return divisor
    overflows = torch.eq(tensors[0] if dividend is tensors[0] else torch.tensor(dividend), torch.iinfo(kind).min)
    return torch.where(overflows & (divisor == -1), 1, divisor).to(kind)


def _divisor(op: Op, input: torch.Tensor, other: torch.Tensor, **kwargs: Any) -> Any:  # noqa: A002
    """Compute a common divisor or multiple; the least integer, which has no absolute value, counts half."""
    return op(_with_absolute(input), _with_absolute(other), **kwargs)


def _with_absolute(tensor: torch.Tensor) -> torch.Tensor:
    kind = tensor.dtype
    if tensor.device.type != "cpu" or kind.is_floating_point or kind.is_complex or not kind.is_signed:
        return tensor
    least = torch.iinfo(kind).min
    return torch.where(tensor == least, least // 2, tensor)


def _cut(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Cut into a number of parts. Each part takes memory, also without elements."""
    _check_parts(given(args, kwargs, 1, "chunks", "indices_or_sections", "sections"))
    return op(*args, **kwargs)


def _split(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Cut into parts of a size."""
    tensor = given(args, kwargs, 0, "tensor", "input", "self")
    size = given(args, kwargs, 1, "split_size_or_sections", "split_size")
    if isinstance(size, int) and size > 0 and tensor.dim():
        _check_parts(tensor.shape[given(args, kwargs, 2, "dim") or 0] // size)
    return op(*args, **kwargs)


def _unbind(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Cut into parts of one index."""
    tensor = given(args, kwargs, 0, "input")
    if tensor.dim():
        _check_parts(tensor.shape[given(args, kwargs, 1, "dim") or 0])
    return op(*args, **kwargs)


def _check_parts(count: Any) -> None:
    if isinstance(count, int) and count > MAX_PARTS:
        raise GraphExecutionError(f"a step cuts a tensor into {count} parts; at most {MAX_PARTS} are allowed")


def _combine(op: Op, *args: Any, **kwargs: Any) -> Any:
    """Compute with a number of elements at a time."""
    number = given(args, kwargs, 1, "r", "p")
    if isinstance(number, int) and number > MAX_COMBINATION:
        raise GraphExecutionError(f"a step combines {number} elements; at most {MAX_COMBINATION} are allowed")
    return op(*args, **kwargs)


def _arithmetic(op: Op, one: Any, other: Any) -> Any:
    """Add or multiply numbers; a list times a number could have any length."""
    if not isinstance(one, _NUMBERS) or not isinstance(other, _NUMBERS):
        raise GraphExecutionError(f"cannot compute with a {type(one).__name__} and a {type(other).__name__}")
    return op(one, other)


def _into(op: Op, *args: Any, out: Any, **kwargs: Any) -> Any:
    """Write the result into tensors of the same shapes. torch would resize the tensors, also those of a module."""
    result = op(*args, **kwargs)
    if out is None:
        return result
    pairs = [(out, result)] if isinstance(out, torch.Tensor) else list(zip(out, result, strict=True))
    for target, value in pairs:
        if target.shape != value.shape:
            raise GraphExecutionError(
                f"a step writes a result of the shape {tuple(value.shape)} into a tensor of the shape "
                f"{tuple(target.shape)}; the shapes must be the same"
            )
        target.copy_(value)
    return out


def with_out(op: Op, kwargs: Collection[str]) -> Op:
    """Return an op for calls with the keywords ``kwargs``; ``out`` never resizes a tensor.

    Example:
        >>> with_out(torch.neg, ["out"])(torch.ones(2), out=torch.zeros(2))
        tensor([-1., -1.])
    """
    return _checked(_into, op) if "out" in kwargs else op


def _renewed(name: str) -> Callable[..., Any]:
    """Return a view in the place of an op that changes the shape of a tensor in place, which may be a module's."""
    method = getattr(torch.Tensor, name)
    return lambda _op, *args, **kwargs: method(*args, **kwargs)


def _detached(_op: Op, tensor: torch.Tensor) -> torch.Tensor:
    """Return ``.data`` so that autograd notices a change: a gradient would use changed indices unchecked."""
    return tensor.detach()


_OF_MATRICES = "det inverse logdet matrix_exp matrix_power pinverse slogdet".split()

_CHECKS: tuple[tuple[Callable[..., Any], str], ...] = (
    (_ctc_loss, "torch.nn.functional.ctc_loss"),
    (_embedding_bag, "torch.nn.functional.embedding_bag"),
    (_matrices, " ".join(name for name in OPS if name.startswith("torch.linalg."))),
    *((_matrices, f"torch.{name} torch.Tensor.{name}") for name in _OF_MATRICES),
    (_eigenvectors, "torch.linalg.eig"),
    (_finite, "torch.linalg.eigvals"),
    (_least_squares, "torch.linalg.lstsq"),
    (_grid_sample, "torch.nn.functional.grid_sample"),
    (_grouped, "torch._grouped_mm"),
    (_attention, "torch.nn.functional.scaled_dot_product_attention"),
    *((max_pool(n), f"torch.max_pool{n}d torch.nn.functional.max_pool{n}d") for n in (1, 2, 3)),
    (slide, "torch.avg_pool1d torch.nn.functional.fold torch.nn.functional.unfold"),
    *((slide, f"torch.nn.functional.{kind}_pool{n}d") for kind in ("avg", "lp") for n in (1, 2, 3)),
    *((slide, f"torch.nn.functional.max_unpool{n}d") for n in (1, 2, 3)),
    *((slide, f"torch.nn.functional.fractional_max_pool{n}d") for n in (2, 3)),
    *((slide, f"torch.nn.functional.adaptive_{kind}_pool{n}d") for kind in ("avg", "max") for n in (1, 2, 3)),
    (_median, "torch.median torch.nanmedian torch.Tensor.median torch.Tensor.nanmedian"),
    (_pdist, "torch.nn.functional.pdist"),
    (
        _divide,
        "torch.div torch.divide torch.floor_divide torch.fmod torch.remainder torch.Tensor.div torch.Tensor.div_",
    ),
    (_divide, "torch.Tensor.divide torch.Tensor.floor_divide torch.Tensor.fmod torch.Tensor.remainder"),
    (_divide, "torch.Tensor.__floordiv__ torch.Tensor.__mod__ torch.Tensor.__ifloordiv__ torch.Tensor.__imod__"),
    (_divisor, "torch.gcd torch.lcm torch.Tensor.gcd torch.Tensor.lcm"),
    (_divide_reversed, "torch.Tensor.__rfloordiv__ torch.Tensor.__rmod__"),
    (_cut, "torch.chunk torch.tensor_split torch.hsplit torch.vsplit torch.dsplit"),
    (_cut, "torch.Tensor.chunk torch.Tensor.tensor_split torch.Tensor.hsplit torch.Tensor.vsplit torch.Tensor.dsplit"),
    (_split, "torch.split torch.Tensor.split"),
    (_unbind, "torch.unbind torch.Tensor.unbind"),
    *((convolve, f"{module}.conv{n}d") for module in ("torch", "torch.nn.functional") for n in (1, 2, 3)),
    *(
        (convolve_transposed, f"{module}.conv_transpose{n}d")
        for module in ("torch", "torch.nn.functional")
        for n in (1, 2, 3)
    ),
    (_combine, "torch.combinations torch.special.multigammaln"),
    (_arithmetic, "add mul"),
    (_detached, "torch.Tensor.data"),
    *((_renewed(name), f"torch.Tensor.{name}_") for name in ("transpose", "unsqueeze", "squeeze")),
)


def _checked(check: Callable[..., Any], op: Op) -> Op:
    def call(*args: Any, **kwargs: Any) -> Any:
        return check(op, *args, **kwargs)

    return call


CHECKED_OPS: Mapping[str, Op] = MappingProxyType(
    {name: _checked(check, OPS[name]) for check, names in _CHECKS for name in names.split() if name in OPS}
)
"""Replacements for torch's functions, by the names of the table of ops."""
