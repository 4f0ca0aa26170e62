"""What one trainer process pays; run by ``python -m benchmarks.trainer KIND ...``, which prints one JSON line.

torch is imported before the clock starts and before memory is looked at: both sides need it.
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
    """Build, and say how long it took, how much memory, and what came of it.

    ``kind`` is ``local`` or ``remote``; ``config`` a JSON object: the factory's arguments and ``model_cfg``. With
    ``wait``, the process says that it is ready and begins when it is told to.
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

    from benchmarks.experiment import digests, size_of  # noqa: PLC0415  after the clock

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
        from model_factory import RemoteModelFactory  # noqa: PLC0415  imported on the clock

        return RemoteModelFactory(address, cache_dir=cache, **arguments)
    from model_factory_server import PolicyConstructorModelFactory  # noqa: PLC0415  imported on the clock

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
