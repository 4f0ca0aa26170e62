"""A recorder in this process, in the place of the recorder on a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from model_factory.program.example_call import decode_call, encode_call
from model_factory.program.recorded_program import FORWARD, Read, RecordedProgram
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server.export.trainer_call import record_call


class InProcessRecorder:
    """Records calls as a server does: on another model, built the same way."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.make = make
        self.asked: list[tuple[bool | int, ...]] = []
        """The outcomes of each recorded call."""
        self.programs: list[tuple[str, RecordedProgram]] = []

    @property
    def calls(self) -> int:
        return len(self.asked)

    def known(self, path: str) -> Sequence[RecordedProgram]:
        return [item for at, item in self.programs if at == path]

    def record(
        self,
        path: str,
        arguments: Mapping[str, Any],
        training: tuple[tuple[str, bool], ...],
        dtype: Any,  # noqa: ARG002  the model is always built as it is
        outcomes: tuple[bool | int, ...] = (),
        method: str = FORWARD,
        reads: Sequence[Read] = (),
        defaults: Mapping[str, Any] | None = None,  # noqa: ARG002  this recorder is given all values
    ) -> RecordedProgram:
        self.asked.append(outcomes)
        with torch.random.fork_rng():
            call = decode_call(encode_call(arguments, None, outcomes, method, reads))
            programs = record_call(self.make(), path, call, dict(training))
        self.programs += programs
        return programs[0][1]


def ask(model: nn.Module, recorder: InProcessRecorder | None) -> None:
    """Have the blocks of a rebuilt model ask a recorder for programs."""
    for module in model.modules():
        if isinstance(module, ProgramModule):
            module._recorder = recorder
