"""The kinds of the blocks of a model, with what is known of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from model_factory.descriptor.stock import is_stock
from model_factory.program.call_signature import CallSignature
from model_factory_server.export.conditions.inner_blocks import InnerCall
from model_factory_server.export.conditions.result_forms import ResultForm
from model_factory_server.export.kinds.alike import has_same_reads, structure
from model_factory_server.export.kinds.kind import Dtypes, Flags, Kind, RecordedCall, flags_of


class KnownKinds:
    """Kinds by the structure of their blocks.

    Example:
        >>> known = KnownKinds()
        >>> block = type("Block", (nn.Module,), {})()
        >>> known.note(block)
        >>> known.kind(block) is known.kind(block), block in known
        (True, True)
    """

    def __init__(self) -> None:
        self._structures: dict[nn.Module, str] = {}
        self._kinds: dict[str, list[Kind]] = {}

    def note(self, block: nn.Module) -> None:
        """Note the present structure of a block and of all custom blocks below."""
        for item in block.modules():
            if not is_stock(item) and item not in self._structures:
                self._structures[item] = structure(item)

    def __contains__(self, block: nn.Module) -> bool:
        return block in self._structures

    def kind(self, block: nn.Module) -> Kind:
        """The kind whose recorded block is ``block``."""
        kinds = self._kinds.setdefault(self._structures[block], [])
        found = next((kind for kind in kinds if kind.block is block), None)
        if found is None:
            kinds.append(found := Kind(block=block))
        return found

    def kinds_of(self, block: nn.Module) -> list[Kind]:
        """The kinds of a block, first the block's own."""
        kinds = self._kinds.get(self._structures[block], [])
        return sorted(
            (
                kind
                for kind in kinds
                if kind.block is block or (block not in kind.unlike and has_same_reads(kind.block, block, kind.reads))
            ),
            key=lambda kind: kind.block is not block,
        )

    def recorded(self, call: InnerCall) -> Iterator[tuple[Kind, RecordedCall]]:
        """What is recorded for the signature of a call, in the present mode of its block."""
        flags = flags_of(call.block)
        for kind in self.kinds_of(call.block):
            for recorded in kind.recorded:
                if recorded.signature == call.signature and flags in recorded.flags:
                    yield kind, recorded

    def found(self, call: InnerCall) -> Iterator[tuple[Kind, RecordedCall, ResultForm | str]]:
        """What is recorded for a call, with the form of the result, or the reason against a program."""
        key = dtypes_of(call)
        for kind, recorded in self.recorded(call):
            form = recorded.reason or recorded.forms.get(key)
            if isinstance(form, str) or (form is not None and form.holds(call.shapes)):
                yield kind, recorded, form

    def refuse(self, call: InnerCall, flags: set[Flags], reason: str) -> None:
        """Note the reason against a program for a call, in the modes ``flags``."""
        refused = RecordedCall(signature=call.signature, flags=flags, reason=reason)
        self.kind(call.block).recorded.insert(0, refused)

    def form_of(self, block: nn.Module, signature: CallSignature, tensors: Sequence[torch.Tensor]) -> ResultForm | None:
        """Return the form of the result of a call with real tensors, if a verified program has the call."""
        if block not in self:
            return None
        call = InnerCall(block=block, path="", signature=signature, tensors=list(tensors), dtype=None)
        return next((form for _, _, form in self.found(call) if isinstance(form, ResultForm)), None)


def dtypes_of(call: InnerCall) -> Dtypes:
    """The dtype of a recording, and the dtypes of a call's tensors."""
    return (call.dtype, tuple(tensor.dtype for tensor in call.tensors))
