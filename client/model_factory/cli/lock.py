"""``model-factory lock``: build models on a server, and pin the builds in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model_factory.cli.output import say
from model_factory.client.builds.build_lock import BuildLock
from model_factory.client.factory import RemoteModelFactory
from model_factory.identity import BuildInfo
from model_factory.program.torch_names import torch_dtype


def lock(
    configs: Mapping[str, str], server: str, *, seed: int | None, dtype: str | None, output: Path, check: bool
) -> int:
    """Build models, and write their build info to the file ``output``; with ``check``, compare with the file."""
    given = None if dtype is None else torch_dtype(dtype)
    models = RemoteModelFactory(server, seed=seed, dtype=given, lock=output if check else None).build(configs)
    assert isinstance(models, dict)
    if check:
        say(f"{output} is up to date")
        return 0
    pinned = BuildLock(output, {name: BuildInfo.of(model) for name, model in models.items()})
    pinned.write()
    for info in pinned.models.values():
        say(f"{info}")
    say(f"{output}: {len(models)} model{'' if len(models) == 1 else 's'} pinned")
    return 0
