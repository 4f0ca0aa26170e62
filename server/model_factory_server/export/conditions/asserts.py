"""Whether a decision by values is the condition of an ``assert`` statement, so that the other outcome is an error."""

from __future__ import annotations

import dis
from itertools import dropwhile, islice
from types import FrameType

from model_factory_server.export.conditions.dtype_reads import frame_of_forward

_JUMPS = frozenset({"POP_JUMP_FORWARD_IF_TRUE", "POP_JUMP_IF_TRUE", "NOT_TAKEN", "CACHE"})


def is_asserted(frame: FrameType | None) -> bool:
    """Whether the code of a forward, which calls this from below ``frame``, asserts a condition now.

    Example:
        >>> import sys
        >>> class Condition:
        ...     def __bool__(self):
        ...         print(is_asserted(sys._getframe(1)))
        ...         return True
        >>> assert Condition()
        True
        >>> if Condition(): pass
        False
    """
    frame = frame_of_forward(frame)
    if frame is None:
        return False
    last = frame.f_lasti
    following = (item for item in dis.get_instructions(frame.f_code) if item.offset > last)
    end = next(islice(dropwhile(lambda item: item.opname in _JUMPS, following), 1), None)
    return end is not None and (end.opname == "LOAD_ASSERTION_ERROR" or end.argrepr == "AssertionError")
