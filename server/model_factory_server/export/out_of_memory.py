"""Errors of exhausted memory: the model is not at fault, whichever code the error passed through."""

from __future__ import annotations

import torch

_CPU_ALLOCATOR_TEXT = "can't allocate memory"  # torch's CPU allocator raises a plain RuntimeError with these words


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is exhausted memory.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError())
        (True, False)
    """
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and _CPU_ALLOCATOR_TEXT in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
