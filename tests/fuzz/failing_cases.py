"""Cases that fail in each way, for the test of the harness."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch


def case(seed: int, note: Callable[[str], None]) -> None:
    note(f"way {seed}")
    tensor = torch.ones(5)
    end = tensor.data_ptr() + tensor.nbytes
    match seed:
        case 1:
            ctypes.string_at(tensor.data_ptr() - 1, 1)
        case 2:
            ctypes.memset(end, 7, 4)
        case 3:
            while True:
                pass
        case 4:
            raise ValueError("two\nlines")
        case 5:
            try:
                torch.ones(1 << 34)
            except RuntimeError:
                return
            raise AssertionError("the address space has no limit")
        case 6:
            ctypes.string_at(0)
        case 8:
            ctypes.string_at(end + 12, 8)  # the block is aligned to 16 bytes
