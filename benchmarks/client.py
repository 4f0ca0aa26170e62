"""The trainer: the example experiment, built in process and remotely."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.experiment import COMPONENTS, CONFIGS, SEED, digests, example, size_of
from benchmarks.measure import Contender, Report, Row, Sample, in_turns, ratio, seconds
from model_factory import RemoteModelFactory
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import (
    Programs,
    decode_descriptor,
    decode_programs,
    encode_descriptor,
    encode_programs,
)
from model_factory.descriptor.rebuild import rebuild
from model_factory.program.runtime.program_module import ProgramModule
from model_factory_server import PolicyConstructorModelFactory

LOCAL = "in process"
WARM = "on the node, warm process"
COLD = "on the node, cold process"
COLD_LOCAL = "in process, cold process"


def measure_client(report: Report, folder: Path, address: str, repeats: int) -> None:
    """Add the rows for build, rebuild, forward and memory of the example experiment."""
    cache = folder / "node"
    local = PolicyConstructorModelFactory(seed=SEED, base_dir=CONFIGS)
    remote = RemoteModelFactory(address, seed=SEED, base_dir=CONFIGS, cache_dir=cache)
    originals: Any = local.build(COMPONENTS)
    expected = digests(originals)
    cold = seconds(lambda: remote.build(COMPONENTS))
    report.rows.append(Row(what="example experiment, nothing built, recorded or fetched", value=cold, unit="s"))

    def checked(factory: Any) -> float:
        started = time.perf_counter()
        models = factory.build(COMPONENTS)
        taken = time.perf_counter() - started
        assert digests(models) == expected, "the weights differ from the original"
        return taken

    def in_new_process(kind: str) -> float:
        found = run_trainer(kind, address, cache, COMPONENTS)
        assert found["digests"] == expected, "the weights differ from the original"
        return float(found["seconds"])

    size = size_of(originals)
    warm: dict[str, Contender] = {LOCAL: lambda: checked(local), WARM: lambda: checked(remote)}
    colds: dict[str, Contender] = {
        COLD_LOCAL: lambda: in_new_process("local"),
        COLD: lambda: in_new_process("remote"),
    }
    samples = in_turns(warm, repeats * 4, memory=2 * size) | in_turns(colds, repeats, memory=2 * size)
    report.bars[f"four models, {size / (1 << 20):.0f} MiB, s"] = samples
    for name, sample in samples.items():
        what = f"example experiment ({size / (1 << 20):.0f} MiB), {name}"
        report.add(what, sample, "s")
    report.add(f"{WARM} ÷ {LOCAL}", ratio(samples[WARM], samples[LOCAL]), target=0.05)
    report.add(f"{COLD} ÷ {COLD_LOCAL}", ratio(samples[COLD], samples[COLD_LOCAL]), target=0.2)
    rebuilt: Any = remote.build(COMPONENTS)
    _rebuild(report, rebuilt, repeats)
    _training(report, originals, rebuilt, repeats)
    _memory(report, folder, address, repeats, expected)
    remote.close()


def run_trainer(kind: str, address: str, cache: Path, components: Any) -> dict[str, Any]:
    """Build in a separate process and return the printed results."""
    arguments = {"seed": SEED, "base_dir": str(CONFIGS), "model_cfg": components}
    command = [sys.executable, "-m", "benchmarks.trainer", kind, address, str(cache), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _rebuild(report: Report, models: dict[str, nn.Module], repeats: int) -> None:
    """Rebuild module trees from descriptors, with loaded tensors."""
    works = []
    for model in models.values():
        descriptor = describe(model)
        programs: Programs = tuple(
            (path, ready.recorded)
            for path, module in model.named_modules()
            if isinstance(module, ProgramModule)
            for ready in module._programs  # noqa: SLF001
        )
        tensors = {name: tensor.detach() for name, tensor in named_tensors(model, descriptor).items()}
        works.append((encode_descriptor(descriptor), tensors, encode_programs(programs)))
    decoded = [(decode_descriptor(one), tensors, decode_programs(two)) for one, tensors, two in works]
    modules = sum(len(descriptor.modules) for descriptor, _, _ in decoded)

    def once() -> float:
        made: list[nn.Module] = []
        taken = seconds(lambda: made.extend(rebuild(*parts) for parts in decoded))
        for model, again in zip(models.values(), made, strict=True):
            assert [name for name, _ in again.named_modules()] == [name for name, _ in model.named_modules()]
        return taken * 1000 / modules

    sample = in_turns({"rebuild": once}, repeats * 4)["rebuild"]
    report.add(f"rebuild of {modules} modules from their descriptors, each", sample, "ms", target=0.03)


def _training(report: Report, originals: dict[str, nn.Module], rebuilt: dict[str, nn.Module], repeats: int) -> None:
    """A forward and backward of all four, with the example's losses."""
    code = example()
    torch.manual_seed(0)
    batch = code.demonstrations()
    bridge = nn.Linear(768, 512)
    policies = {
        name: nn.ModuleDict({**models, "to_memory": bridge}).train()
        for name, models in (("original", originals), ("rebuilt", rebuilt))
    }

    def step(name: str) -> float:
        policies[name].zero_grad(set_to_none=True)
        torch.manual_seed(1)
        started = time.perf_counter()
        flow, latent = code.losses(policies[name], batch)
        (flow + latent).backward()
        taken = time.perf_counter() - started
        losses[name] = (flow.item(), latent.item())
        return taken

    losses: dict[str, tuple[float, float]] = {}
    steps: dict[str, Contender] = {name: lambda name=name: step(name) for name in policies}  # type: ignore[misc]
    samples = in_turns(steps, repeats * 6)
    assert losses["original"] == losses["rebuilt"], f"the losses differ: {losses}"
    for name, parameter in policies["original"].named_parameters():
        assert torch.equal(parameter.grad, policies["rebuilt"].get_parameter(name).grad), f"{name} has another gradient"
    against = ratio(samples["rebuilt"], samples["original"])
    report.add("forward and backward, rebuilt ÷ original", against, target=1.02)


def _memory(report: Report, folder: Path, address: str, repeats: int, expected: dict[str, str]) -> None:
    """Add the rows for the peak memory of a process that fetches, builds and reads every page."""
    for what, fetches in (("fetched and touched", True), ("on the node and touched", False)):
        cache = folder / f"memory{fetches}"
        values = []
        for _ in range(min(repeats, 3)):
            if fetches:
                shutil.rmtree(cache, ignore_errors=True)
            found = run_trainer("remote", address, cache, COMPONENTS)
            assert found["digests"] == expected, "the weights differ from the original"
            values.append(found["peak_bytes"] / found["size"])
        sample = Sample(values=tuple(values))
        report.add(f"client peak RSS beyond torch's import ÷ model bytes, {what}", sample, target=1.1)
        shutil.rmtree(cache)
