"""Architectures: first builds, recordings beside torch.export, and nested programs beside the original."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.capture import Example, blocks_of_the_library, by_export, models_of_transformers, policies
from benchmarks.experiment import COMPONENTS, CONFIGS, SEED, digests
from benchmarks.measure import Contender, Report, Sample, in_turns, ratio
from benchmarks.servers import our_server
from model_factory import RemoteModelFactory
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import decode_descriptor, decode_programs, encode_descriptor, encode_programs
from model_factory.descriptor.rebuild import rebuild
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.export.exporter import record_model

WIDTH, HEADS, DEPTH = 256, 4, 24

_CHANGES: dict[str, dict[str, str]] = {
    "another depth": {"transformer_num_layers: 7": "transformer_num_layers: 8"},
    "another width": {"policy_width: 512": "policy_width: 448", "latent_width: 768": "latent_width: 704"},
}
"""A known architecture with a change: text in the configs -> other text."""


def measure_architectures(report: Report, folder: Path, repeats: int) -> None:
    """Add the rows of first builds, of recordings and of nested programs."""
    first_builds(report, folder, repeats)
    recordings(report, chain(blocks_of_the_library(), policies(), models_of_transformers()))
    nested_programs(report, repeats)


def first_builds(report: Report, folder: Path, repeats: int) -> None:
    """Add the rows of the example experiment on servers that have built and recorded nothing.

    The changed experiments are built by the server that has built the experiment.
    """
    taken: dict[str, list[float]] = {}
    for number in range(repeats):
        place = folder / f"first-builds-{number}"
        with our_server(place / "store", "--no-share-store") as server:
            for name in ("a new architecture", *_CHANGES):
                configs = _changed_configs(place / name, _CHANGES.get(name, {}))
                remote = RemoteModelFactory(server.address, seed=SEED, base_dir=configs, cache_dir=place / "node")
                local = PolicyConstructorModelFactory(seed=SEED, base_dir=configs)
                (remote_seconds, found), (local_seconds, expected) = _timed(remote), _timed(local)
                remote.close()
                assert digests(found) == digests(expected), "the weights differ from the original"
                taken.setdefault(name, []).append(remote_seconds / local_seconds)
        shutil.rmtree(place)
    for name, values in taken.items():
        target = 1.5 if name in _CHANGES else 3.0
        report.add(f"first build of {name} ÷ in process", Sample(values=tuple(values)), target=target)


def _changed_configs(folder: Path, changes: dict[str, str]) -> Path:
    shutil.copytree(CONFIGS, folder)
    for path in folder.iterdir():
        text = path.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        path.write_text(text)
    return folder


def _timed(factory: Any) -> tuple[float, dict[str, nn.Module]]:
    started = time.perf_counter()
    models = factory.build(COMPONENTS)
    return time.perf_counter() - started, models


def recordings(report: Report, examples: Iterator[Example]) -> None:
    """Add the row of the processor time of recording and verifying, beside ``torch.export`` of the same models.

    A recording holds for train and eval mode; the export is for eval mode. Models that either does not take are left
    out and counted.
    """
    ratios: list[float] = []
    left_out = 0
    for example in examples:
        example.model.example_inputs = lambda inputs=example.inputs: [dict(inputs)]
        try:
            exported = _processor_seconds(lambda one=example: by_export(one.model.eval(), one.inputs, strict=False))
            recorded = _processor_seconds(lambda one=example: record_model(one.model))
        except Exception:  # noqa: BLE001  any failure leaves out the model
            left_out += 1
            continue
        ratios.append(recorded / exported)
    note = f"{len(ratios)} models, {left_out} left out, from {min(ratios):.2f} to {max(ratios):.2f}"
    sample = Sample(values=(statistics.median(ratios),))
    report.add("record and verify ÷ torch.export, processor time, median", sample, target=1.0, note=note)


def _processor_seconds(work: Callable[[], object]) -> float:
    work()  # imports, and kernels that are chosen on first use
    started = time.process_time()
    work()
    return time.process_time() - started


class Layer(nn.Module):
    """A layer of a transformer, with an attention of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Attention(nn.Module):
    """A block within a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Transformer(nn.Module):
    """Layers of equal kind."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def example_inputs(self) -> list[dict[str, Tensor]]:
        return [{"x": torch.randn(2, 8, WIDTH)}]


def nested_programs(report: Report, repeats: int, depth: int = DEPTH) -> None:
    """Add the rows of a transformer whose layers are blocks within a block."""
    torch.manual_seed(0)
    original = Transformer(depth)
    programs = encode_programs(record_model(original))
    single = encode_programs(record_model(Transformer(1)))
    sizes = Sample(values=(len(programs) / len(single),))
    note = f"{len(programs)} and {len(single)} bytes"
    report.add(f"programs of {depth} equal layers ÷ of one layer, bytes", sizes, target=2.0, note=note)
    descriptor = describe(original)
    tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(original, descriptor).items()}
    rebuilt = rebuild(decode_descriptor(encode_descriptor(descriptor)), tensors, decode_programs(programs))
    x = torch.randn(8, 32, WIDTH)
    losses: dict[str, float] = {}

    def step(name: str, model: nn.Module) -> float:
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        loss = model(x).square().mean()
        loss.backward()
        losses[name] = loss.item()
        return time.perf_counter() - started

    models = {"original": original, "rebuilt": rebuilt}
    steps: dict[str, Contender] = {name: lambda name=name: step(name, models[name]) for name in models}  # type: ignore[misc]
    samples = in_turns(steps, repeats * 4)
    assert losses["original"] == losses["rebuilt"], f"the losses differ: {losses}"
    against = ratio(samples["rebuilt"], samples["original"])
    report.add("forward and backward of nested programs ÷ original", against, target=1.02)
