"""Torch's own modules from a hostile server: refused before a kernel trusts an attribute, a tensor or an index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fuzz.harness import child_environment

sys.path.insert(0, str(Path(__file__).parent))
from hostile_modules import ATTACKS, rebuilt

SCRIPT = Path(__file__).with_name("hostile_modules.py")
REFUSALS = ("FormatError: ", "GraphExecutionError: ")


@pytest.fixture(scope="module", params=[(), ("--from-file",)], ids=["from a server", "from a file"])
def outcomes(request: pytest.FixtureRequest) -> dict[str, str | None]:
    """Run all attacks in a process with guard pages; a crash ends the process before the later attacks."""
    command = [sys.executable, str(SCRIPT), *request.param]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(name: str, outcomes: dict[str, str | None]) -> None:
    error = outcomes[name]
    assert error is not None
    assert error.startswith(REFUSALS)
    assert ATTACKS[name][1] in error


EXPANDED_TARGETS = """
from hostile_modules import *
from torch.nn.utils import parametrizations
module = rebuilt(nn.CTCLoss(reduction="none"))
for size in (3, 3000):
    for named in (False, True):
        log_probs = torch.randn(size + 3, 2, 5).log_softmax(2).requires_grad_()
        targets = torch.arange(2).repeat(size) + 1
        lengths = torch.tensor([size + 3, size + 2]), torch.tensor([size, size])
        shared = torch.ones(1, dtype=torch.int64).expand(2 * size)
        for given in (targets, shared):
            loss = module(log_probs, targets=given, input_lengths=lengths[0], target_lengths=lengths[1]) if named \
                else module(log_probs, given, *lengths)
            expected = nn.functional.ctc_loss(log_probs, given.contiguous(), *lengths, reduction="none")
            assert torch.equal(loss, expected)
            loss.sum().backward()
"""


def test_expanded_targets_of_a_ctc_module() -> None:
    """The kernel reads beyond targets that share memory; the module gets a copy, and the same loss."""
    environment = child_environment()
    environment["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    command = [sys.executable, "-c", EXPANDED_TARGETS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "module",
    [
        nn.LazyConv1d(4, 3, stride=2),
        nn.LazyConvTranspose2d(4, 64, stride=40),
        parametrizations.weight_norm(nn.Conv1d(6, 4, 3, stride=2, groups=2)),
        parametrizations.weight_norm(nn.ConvTranspose1d(6, 4, 16, stride=8)),
        parametrizations.spectral_norm(nn.Conv2d(6, 4, 3, stride=2)),
        parametrizations.orthogonal(nn.Conv1d(6, 4, 3, stride=2)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_convolutions_without_a_plain_weight_stay_portable(module: nn.Module) -> None:
    """The check of the channels changes no result, and a rebuilt convolution can be described, also after a call."""
    sizes = [9, 9] if "2d" in type(module).__name__ else [9]
    x = torch.randn(2, 6, *sizes)
    built = rebuilt(module).eval()
    expected = module.eval()(x) if not torch.nn.parameter.is_lazy(module.weight) else None
    result = built(x)
    assert expected is None or torch.equal(result, expected)
    again = rebuilt(built).eval()
    assert torch.equal(again(x), result)


def test_the_check_of_channels_compiles() -> None:
    built = rebuilt(parametrizations.weight_norm(nn.Conv1d(6, 4, 3, stride=2)))
    x = torch.randn(2, 6, 9)
    assert torch.equal(torch.compile(built, backend="eager", fullgraph=True)(x), built(x))
