"""Time and memory of a trainer process: ``python -m benchmarks.trainer KIND ...`` prints a JSON line.

torch is imported before the measurement of time and memory, as every trainer imports torch.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


def main(kind: str, address: str, cache: str, config: str) -> None:
    """Build models and print duration, peak memory, and digests of the results.

    Args:
        kind: ``local`` or ``remote``.
        address: Address of the server.
        cache: Folder of the node cache.
        config: JSON object with the arguments of the factory and ``model_cfg``. With ``wait``, the process prints
            ``ready`` and starts after a line on standard input.
    """
    arguments = json.loads(config)
    model_cfg, wait = arguments.pop("model_cfg"), arguments.pop("wait", False)
    torch.ones(1).sum()
    if wait:
        print("ready", flush=True)
        sys.stdin.readline()
    before, began = _peak_bytes(), time.time()
    started = time.perf_counter()
    models = _factory(kind, address, cache, arguments).build(model_cfg)
    taken, ended = time.perf_counter() - started, time.time()
    touched = sum(tensor.sum().item() for tensor in _tensors(models))
    peak = _peak_bytes() - before

    from benchmarks.experiment import digests, size_of  # noqa: PLC0415  after the measurement

    print(
        json.dumps(
            {
                "seconds": taken,
                "began": began,
                "ended": ended,
                "peak_bytes": peak,
                "size": size_of(models),
                "digests": digests(models),
                "sum": touched,
            }
        )
    )


def _factory(kind: str, address: str, cache: str, arguments: dict[str, Any]) -> Any:
    if kind == "remote":
        from model_factory import RemoteModelFactory  # noqa: PLC0415  the import is part of the measurement

        return RemoteModelFactory(address, cache_dir=cache, **arguments)
    from model_factory_server import PolicyConstructorModelFactory  # noqa: PLC0415  the import is part of the measurement

    return PolicyConstructorModelFactory(**arguments)


def _tensors(models: dict[str, nn.Module]) -> list[torch.Tensor]:
    return [tensor for model in models.values() for tensor in model.state_dict().values()]


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
