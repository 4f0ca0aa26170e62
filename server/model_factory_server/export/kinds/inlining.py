"""Recordings without programs of inner blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from model_factory_server.export.conditions.inner_blocks import InnerCall
from model_factory_server.export.conditions.result_forms import ResultForm
from model_factory_server.export.record.assigned import Assigned
from model_factory_server.export.record.recording import Recording


class Inlining:
    """Makes the inside of every inner block a part of the caller's program."""

    def __init__(self, reason: str, *, assigned: Assigned | None, fixes_sizes: bool = False) -> None:
        self._reason = reason
        self.assigned = assigned
        self.fixes_sizes = fixes_sizes

    def find(self, _call: InnerCall) -> str:
        """Return the reason."""
        return self._reason

    def reads(self, _block: nn.Module) -> frozenset[tuple[str, str]]:
        """Return nothing: no block has a program of its own."""
        return frozenset()

    def reads_dtypes(self, _block: nn.Module) -> bool:
        """Return False."""
        return False

    def learn(self, _recording: Recording, _call: InnerCall) -> None:
        """Do nothing."""

    def learn_dtype(self, _recording: Recording, _calls: Sequence[InnerCall]) -> None:
        """Do nothing."""

    def are_alike(self, _recording: Recording) -> bool:
        """Return True."""
        return True

    def note(self, _recording: Recording, _form: ResultForm | str) -> None:
        """Do nothing."""
