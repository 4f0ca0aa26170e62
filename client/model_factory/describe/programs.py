"""The programs of a rebuilt model: from the build, and recorded since."""

from __future__ import annotations

from torch import nn

from model_factory.descriptor.codec import Programs
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.program_module import ProgramModule


def programs_of(model: nn.Module) -> Programs:
    """Return the programs of every rebuilt block in a model, by the present path of the block.

    Example:
        >>> programs_of(nn.Sequential(nn.Linear(2, 2)))
        ()
    """
    found: list[tuple[str, RecordedProgram]] = []
    for path, module in model.named_modules():
        if isinstance(module, ProgramModule):
            own: list[RecordedProgram] = []
            for compiled in module._programs:
                if compiled.recorded not in own:
                    own.append(compiled.recorded)
            found += [(path, recorded) for recorded in own]
    return tuple(found)
