"""Python's garbage collector, kept from what is all alive."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage inside: while modules are made nearly all that is new stays, and all else is looked at too."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage inside, and take what is new for as long-lived as it is: a class or a function of a module.

    Right after the import of torch, whose objects no collection has seen, one takes 0.07 to 0.09 s. Most new objects
    come from imports then, so that it fell into this package's; now it comes when the trainer makes as many of its own.
    """
    with no_collection():
        yield
        if not gc.get_freeze_count():  # what the owner of the process has frozen stays so
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
