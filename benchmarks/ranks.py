"""Many ranks on a node that build the same large model at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.experiment import SEED
from benchmarks.measure import Report, Sample, provide_memory, ratio
from benchmarks.servers import our_server
from model_factory.store import Store

RANKS = 8
WIDTH = 1280
MEMORY_BYTES = 6 << 30


def measure_ranks(report: Report, folder: Path, size: int, repeats: int) -> None:
    """Add the rows for ranks that build the same model of about ``size`` bytes."""
    layers = max(1, size // (12 * WIDTH * WIDTH * 4))
    layer = {"_type_": "nn.TransformerEncoderLayer", "d_model": WIDTH, "nhead": 8, "dim_feedforward": 4 * WIDTH}
    config = {"schema_version": 1, "model": {"sequential": {"layers": [layer] * layers}}}
    ways: dict[str, list[float]] = {"in process": [], "over TCP": [], "same machine": []}
    size = 0
    for number in range(repeats + 1):
        local = _together("local", "", folder, config)
        size = local[0]["size"]
        digests = {json.dumps(rank["digests"]) for rank in local}
        taken = {"in process": _span(local)}
        for way, options in (("over TCP", ("--no-share-store",)), ("same machine", ())):
            with our_server(folder / f"ranks-{way}{number}", *options) as server:
                found = _together("remote", server.address, folder / f"node-{way}{number}", config)
                assert {json.dumps(rank["digests"]) for rank in found} == digests, (
                    "the weights differ from the weights in process"
                )
                assert server.builds() == 1, f"{server.builds()} builds ran"
            _check_one_transfer(folder / f"node-{way}{number}", size)
            taken[way] = _span(found)
        for way, seconds in taken.items():
            if number:
                ways[way].append(seconds)
    samples = {way: Sample(values=tuple(values)) for way, values in ways.items()}
    report.bars[f"{RANKS} ranks, {size / (1 << 20):.0f} MiB, s"] = samples
    for way, sample in samples.items():
        what = f"{RANKS} ranks, nothing cached, {size / 1e9:.1f} GB model, {way}"
        report.add(what, sample, "s")
    for way in ("over TCP", "same machine"):
        against = ratio(samples[way], samples["in process"])
        what = f"{RANKS} ranks, {way}, all together ÷ {RANKS} in-process constructions at once"
        report.add(what, against, target=0.35)


def _together(kind: str, address: str, cache: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Build in all ranks at the same time; every process has imported torch before the start signal."""
    arguments = json.dumps({"seed": SEED, "model_cfg": {"large": config}, "wait": True})
    command = [sys.executable, "-m", "benchmarks.trainer", kind, address, str(cache), arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # torchrun sets the same for several ranks on a node
    ranks = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(RANKS)
    ]
    provide_memory(MEMORY_BYTES)
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "ready\n"
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        return [json.loads(rank.communicate()[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def _span(found: list[dict[str, Any]]) -> float:
    """Return the seconds from the first start to the last end."""
    return float(max(rank["ended"] for rank in found) - min(rank["began"] for rank in found))


def _check_one_transfer(cache: Path, size: int) -> None:
    """Check that the cache holds the weights once and no unfinished file."""
    store = Store(cache)
    large = [entry for entry in store.entries() if entry.size >= size // 2]
    assert len(large) == 1, f"{len(large)} copies of the weights"
    assert store.verify(large[0].digest)
    assert not list((cache / "staging").iterdir())
