"""Examines one model: records, verifies, rebuilds, compares at three sizes in both modes; and exports with torch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.capture import by_export
from matrix.portability import rebuilt_elsewhere
from model_factory.errors import ModelFactoryError
from model_factory_server.export.exporter import export_model
from model_factory_server.export.portable_methods import as_forward
from model_factory_server.export.trace.results import portable_output
from support.compare import assert_same, assert_same_state, leaves, loss_of, map_tensors, observe
from support.recording import InProcessRecorder, ask
from zoo.model import SIZES, Model

ROUNDS = (3, 30)
"""Measured runs of original and rebuilt model, in turns: at least, and at most."""
RATIO_SECONDS = 0.5
"""Time of the measured runs, between the two."""

Report = Callable[[dict[str, Any]], None]
"""Receives results as soon as they are known, so that a killed process leaves its first results."""


def examine(model: Model, report: Report, *, export: bool = True) -> None:
    """Report the ``status`` of a model, its figures, and the same of ``torch.export``.

    The status is ``travels``, ``refused`` (with a ``reason``), ``wrong`` (a difference, an alarm), ``crashed`` (an
    error that is no refusal), or ``broken`` (the entry itself does not run).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _examine(model, report, export=export)


def _examine(model: Model, report: Report, *, export: bool) -> None:
    try:
        module = model.build()
        sizes = [size for size in range(SIZES) if _runs(module, model, size)]
    except Exception as error:  # noqa: BLE001  the library's code may raise any error
        report({"status": "broken", "reason": _text(error)})
        return
    report({"sizes": len(sizes), "parameters": sum(item.numel() for item in module.parameters())})
    report(_travel(model, report, sizes))
    if export:
        report(_exported(model, sizes))


def _runs(module: nn.Module, model: Model, size: int) -> bool:
    """Whether the original takes a call; it has to take the first."""
    try:
        for mode in (True, False):
            _observe(module.train(mode), model, size)
    except Exception:
        if size == 0:
            raise
        return False
    return True


def _observe(module: nn.Module, model: Model, size: int) -> dict[str, Any]:
    gradients = model.input_gradients and size != 1
    found = observe(module, model.inputs(size), model.method, input_gradients=gradients, convert=portable_output)
    return {**found, "state": dict(module.state_dict())}


def _travel(model: Model, report: Report, sizes: list[int]) -> dict[str, Any]:
    recorded = model.build()
    try:
        with _cpu_seconds() as taken:
            exported = export_model(recorded)
        programs = exported.programs
        steps = sum(len(item.program.steps) for _, item in programs)
        if programs:  # else the blocks of a torch layer are recorded at the first call
            report({"programs": len(programs), "steps": steps, "record": taken[0]})
        rebuilt = rebuilt_elsewhere(recorded, programs, exported.descriptor)
        original = model.build()
        assert_same_state(rebuilt, original)
        recorder = InProcessRecorder(model.build)
        ask(rebuilt, recorder)
        for mode in (True, False):
            for size in sizes:
                expected = _observe(original.train(mode), model, size)
                assert_same(_observe(rebuilt.train(mode), model, size), expected, f"call {size}, training={mode}")
    except ModelFactoryError as error:
        return {"status": "refused", "reason": _text(error)}
    except AssertionError as error:
        return {"status": "wrong" if _is_steady(model, sizes) else "unsteady", "reason": _text(error)}
    except Exception as error:  # noqa: BLE001  an error of the project, or of a rebuilt model
        return {"status": "crashed", "reason": _text(error)}
    return {"status": "travels", "asked": recorder.calls, "ratio": _ratio(model, original, rebuilt)}


def _is_steady(model: Model, sizes: list[int]) -> bool:
    """Whether two originals give the same results."""
    one, other = model.build(), model.build()
    try:
        for mode in (True, False):
            for size in sizes:
                assert_same(_observe(one.train(mode), model, size), _observe(other.train(mode), model, size))
    except AssertionError:
        return False
    return True


def _ratio(model: Model, original: nn.Module, rebuilt: nn.Module) -> float:
    """The shortest time of forward and backward of the rebuilt model, divided by the time of the original."""
    times: dict[str, list[float]] = {"original": [], "rebuilt": []}
    inputs = model.inputs(0)
    modules = {"original": original.train(), "rebuilt": rebuilt.train()}
    least, most = ROUNDS
    until = time.perf_counter() + RATIO_SECONDS
    while len(times["rebuilt"]) < least or (time.perf_counter() < until and len(times["rebuilt"]) < most):
        for name, module in modules.items():
            call = module if model.method == "forward" else getattr(module, model.method)
            given = map_tensors(inputs, torch.Tensor.clone)
            started = time.perf_counter()
            loss = loss_of(portable_output(call(**given)))
            if loss.requires_grad:
                loss.backward()
            times[name].append(time.perf_counter() - started)
    return min(times["rebuilt"]) / min(times["original"])


def _exported(model: Model, sizes: list[int]) -> dict[str, Any]:
    """Export in eval mode, with any batch if ``torch.export`` takes it; count the sizes with the original's outputs."""
    reason = ""
    for batch in ("any", "fixed"):
        module = as_forward(model.build().eval(), model.method)
        original = as_forward(model.build().eval(), model.method)
        try:
            with _cpu_seconds() as taken:
                exported = by_export(module, model.inputs(0), strict=False, any_batch=batch == "any")
        except Exception as error:  # noqa: BLE001  any failure is an outcome
            reason = reason or _text(error)
            continue
        agrees = sum(_agrees(exported, original, model.inputs(size)) for size in sizes)
        return {"export": batch, "export_seconds": taken[0], "export_sizes": agrees, "export_reason": reason}
    return {"export": "", "export_reason": reason}


def _agrees(exported: nn.Module, original: nn.Module, inputs: dict[str, Any]) -> bool:
    try:
        results: list[list[torch.Tensor]] = []
        for module in (exported, original):
            torch.manual_seed(3)
            with torch.no_grad():
                results.append(leaves(module(**map_tensors(inputs, torch.Tensor.clone))))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5, equal_nan=True)
    except Exception:  # noqa: BLE001  any failure is an outcome
        return False
    return True


@contextmanager
def _cpu_seconds() -> Iterator[list[float]]:
    """Yield a list that has the CPU seconds of the block afterwards."""
    taken: list[float] = []
    started = time.process_time()
    try:
        yield taken
    finally:
        taken.append(time.process_time() - started)


def _text(error: BaseException) -> str:
    return " ".join(f"{'' if isinstance(error, ModelFactoryError) else type(error).__name__ + ': '}{error}".split())
