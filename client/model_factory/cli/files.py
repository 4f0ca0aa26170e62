"""The command ``load``: shows and checks a model file."""

from __future__ import annotations

from pathlib import Path

from model_factory.cli.output import say, say_lines
from model_factory.descriptor.architecture import Architecture, Portability
from model_factory.model_file.load import ModelFile
from model_factory.source.trust import Trust
from model_factory.wording import shortened


def load(path: Path) -> int:
    """Print the models of a file; check every digest, and rebuild each model that needs no source code."""
    with ModelFile(path) as file, file.errors():
        index = file.index
        say(f"{path}: written by model-factory {index.version} with torch {index.torch_version}")
        file.check_tensors()
        file.verify(file.names)
        for name in file.names:
            _show(file, name)
    say(f"{path}: {_counted(len(file.names), 'model')} and {_counted(len(index.tensors), 'tensor')} checked")
    return 0


def _show(file: ModelFile, name: str) -> None:
    descriptor = file.descriptor(name)
    architecture = Architecture(descriptor, Portability(programs=file.programs(name), refused={}))
    say(name)
    say_lines(f"\n{architecture}\n")
    info = file.build_info(name)
    if info is not None:
        say(f"built as {info}")
    if descriptor.bundle is None:
        file.build(name, Trust(None))
        return
    file.source(descriptor.bundle)
    say(f"needs source code, bundle {descriptor.bundle.digest}; review and pin with `model-factory trust {file.path}`")
    for block, reason in descriptor.source_reasons.items():
        say(f"  {block}: {shortened(reason)}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
