"""What is known of one kind of blocks: programs by call signature and mode, and forms of results."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from model_factory.describe.assignments import attributes_restored_after
from model_factory.program.call_signature import CallSignature
from model_factory.program.ir import Program
from model_factory.program.recorded_program import RecordedProgram
from model_factory_server.export.conditions.result_forms import ResultForm

Flags = tuple[bool, ...]
"""Training flags of a block and everything below, in the order of ``modules()``."""

Dtypes = tuple[torch.dtype | None, tuple[torch.dtype, ...]]
"""Dtype of a recording, and dtypes of the arguments."""


@dataclass(slots=True, kw_only=True)
class RecordedCall:
    """Programs of a kind for one call signature and some training flags."""

    signature: CallSignature
    flags: set[Flags]
    reason: str = ""
    """Reason against a program, if any."""
    programs: list[RecordedProgram] = field(default_factory=list)
    forms: dict[Dtypes, ResultForm | str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Kind:
    """Blocks with equal programs."""

    block: nn.Module
    """The recorded block."""
    reads: dict[tuple[str, str], None] = field(default_factory=dict)
    """Attributes of custom modules that the forward reads."""
    reads_dtypes: bool = False
    """Whether the forward reads dtypes."""
    recorded: list[RecordedCall] = field(default_factory=list)
    noted: dict[tuple[CallSignature, Flags], dict[Dtypes, ResultForm | str]] = field(default_factory=dict)
    """Forms of results, from recordings that are not verified yet."""
    called: list[tuple[CallSignature, list[RecordedProgram]]] = field(default_factory=list)
    """Programs for calls by the trainer, or by a torch module."""
    unlike: set[nn.Module] = field(default_factory=set)
    """Blocks that turned out to do something else."""


def flags_of(block: nn.Module) -> Flags:
    """Return the present training flags.

    Example:
        >>> flags_of(nn.Sequential(nn.ReLU()).eval())
        (False, False)
    """
    return tuple(item.training for item in block.modules())


def flags_of_modes(block: nn.Module) -> tuple[Flags, Flags]:
    """Return the training flags in eval and in train mode; a ``train()`` of a class may freeze modules.

    Example:
        >>> flags_of_modes(nn.Sequential(nn.ReLU()))
        ((False, False), (True, True))
    """
    with attributes_restored_after(block):
        block.eval()  # an own train() may return nothing
        evaluating = flags_of(block)
        block.train()
        return evaluating, flags_of(block)


def has_same_steps(one: Program, other: Program) -> bool:
    """Whether two programs have the same ops and calls in the same order, whatever their arguments.

    Example:
        >>> from model_factory.program.ir import OpCall, Ref
        >>> double = OpCall(name="torch.Tensor.mul", args=(Ref("x"), 2), out="v0")
        >>> one = Program(inputs=("x",), steps=(double,), result=Ref("v0"))
        >>> has_same_steps(one, Program(inputs=("x",), steps=(), result=Ref("x")))
        False
    """
    names = [
        [(type(step), getattr(step, "name", getattr(step, "path", ""))) for step in program.steps]
        for program in (one, other)
    ]
    return names[0] == names[1]
