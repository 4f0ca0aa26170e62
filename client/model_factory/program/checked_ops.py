"""Checks for ops whose kernels trust the arguments.

A program comes from an untrusted peer: without the checks, a program could read or write outside of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from model_factory.errors import GraphExecutionError


def ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> torch.Tensor:
    """``torch.nn.functional.ctc_loss`` with checked targets.

    Raises:
        GraphExecutionError: a target is no class.
    """
    _check_classes(log_probs, targets)
    return functional.ctc_loss(
        log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity=zero_infinity
    )


def _check_classes(log_probs: torch.Tensor, targets: torch.Tensor, *_: Any, **__: Any) -> None:
    """Check the targets, which the kernel uses as indices. The kernel itself checks the lengths."""
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < log_probs.shape[-1]:
        raise GraphExecutionError(f"the targets of a CTC loss must be classes, 0 to {log_probs.shape[-1] - 1}")


def embedding_bag(input: torch.Tensor, weight: torch.Tensor, offsets: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """``torch.nn.functional.embedding_bag`` with checked offsets.

    Raises:
        GraphExecutionError: an offset is outside of the input, or the offsets do not ascend.
    """
    _check_offsets(input, offsets)
    return functional.embedding_bag(input, weight, offsets, *args, **kwargs)


def _check_offsets(input: torch.Tensor, offsets: Any = None, *_: Any, **__: Any) -> None:  # noqa: A002
    if offsets is None or not offsets.numel():
        return
    if not 0 <= int(offsets[0]) <= int(offsets[-1]) <= input.numel() or bool((offsets.diff() < 0).any()):
        raise GraphExecutionError(f"the offsets of an embedding bag must ascend from 0 to at most {input.numel()}")


def _finite(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` of a matrix, with a check for finite numbers."""

    def checked(A: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: N803  torch's own name
        if not bool(A.isfinite().all()):
            raise GraphExecutionError("eigenvalues need a finite matrix; the matrix holds an infinity or a NaN")
        return function(A, *args, **kwargs)

    return checked


CHECKED_OPS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "torch.nn.functional.ctc_loss": ctc_loss,
        "torch.nn.functional.embedding_bag": embedding_bag,
        "torch.linalg.eig": _finite(torch.linalg.eig),
        "torch.linalg.eigvals": _finite(torch.linalg.eigvals),
    }
)
"""Replacements for torch's functions, by the names of the table of ops."""

CHECKED_MODULES = (nn.CTCLoss, nn.EmbeddingBag)
"""Modules of the same kernels."""


def check_call(module: nn.Module, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Check a program's call of an instance of ``CHECKED_MODULES``.

    Raises:
        GraphExecutionError: an argument is wrong, and the kernel would not check the argument.
    """
    check = _check_classes if isinstance(module, nn.CTCLoss) else _check_offsets
    check(*args, **kwargs)
