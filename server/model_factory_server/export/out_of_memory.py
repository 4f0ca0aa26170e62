"""Out of memory: what is wrong is then not the model, whatever code the error came through."""

from __future__ import annotations

import torch

_WORDS = "can't allocate memory"  # torch's, of its allocator for the CPU, in an error without a class of its own


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that there was no memory left."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and _WORDS in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
