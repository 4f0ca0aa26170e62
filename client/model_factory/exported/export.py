"""Exports a module with ``torch.export``: as a ``.pt2`` program, or as ONNX."""

from __future__ import annotations

import functools
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model_factory.errors import ModelFactoryError
from model_factory.exported.comparison import Compared, Run, compare, seeded, tensors_of
from model_factory.exported.inputs import ExampleInputs
from model_factory.program.torch_private import tree_flatten_with_path, tree_map_only
from model_factory.wording import shortened

FORMATS = ("pt2", "onnx")
"""Formats, and suffixes of their files."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MAX_ONNX_BYTES = (1 << 31) - 1  # of a protobuf message
_MAX_TEXT_CHARS = 400
_LOGGERS = ("torch.onnx", "onnxscript", "torch.export")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An exported and compared program."""

    data: bytes
    """The file."""
    compared: Compared
    """The comparison with the module."""


def export(model: nn.Module, inputs: ExampleInputs, file_format: str) -> Exported:
    """Export a module in eval mode, compare the program with the module, and return the file.

    The module is set to eval mode. Named axes of ``inputs`` are dynamic in the program.

    Raises:
        ModelFactoryError: the module does not run on the inputs, cannot be exported, or differs from the program; or a
            package for ONNX is missing.

    Example:
        >>> from model_factory.exported.inputs import parse_inputs
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> exported = export(model, parse_inputs(["input=batch,3"]), "pt2")
        >>> exported.compared.largest_difference
        0.0
        >>> program = torch.export.load(io.BytesIO(exported.data)).module()
        >>> program(input=torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """
    if file_format == "onnx":
        _require_onnx()
    model.eval()
    dtype = _floating_dtype(model)
    given = inputs.example(inputs.first_sizes(), dtype)
    try:
        result = seeded(functools.partial(model, **given))
    except Exception as error:
        raise ModelFactoryError(
            f"the model does not run on the example inputs: {type(error).__name__}: {_text(error)}. Remedy: "
            "correct --input, or give values with --inputs FILE"
        ) from error
    with _quiet(), torch.no_grad():
        program = _program(model, inputs, given, file_format)
        data, run = _pt2(program) if file_format == "pt2" else _onnx(program, inputs, given, result)
        compared = compare(model, run, inputs, dtype)
    return Exported(data=data, compared=compared)


def _program(
    model: nn.Module, inputs: ExampleInputs, given: dict[str, Any], file_format: str
) -> torch.export.ExportedProgram:
    # With DYNAMIC, torch finds the range of sizes and axes of equal sizes; torch before 2.6 has named axes only.
    dynamic: Any = getattr(torch.export.Dim, "DYNAMIC", None)
    axes = {name: torch.export.Dim(name) if dynamic is None else dynamic for name in inputs.axis_names}
    shapes = tree_map_only(str, axes.__getitem__, inputs.named_axes())
    try:
        return torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ModelFactoryError(
            f"the model cannot be exported as {file_format}: {type(error).__name__}: {_text(error)}. Remedy: if "
            "the text is about sizes, give numbers instead of names to axes"
        ) from error


def _pt2(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    data = buffer.getvalue()
    loaded: Any = torch.export.load(io.BytesIO(data)).module()  # the program that a robot runs
    return data, lambda given: tensors_of(loaded(**given))


def _onnx(
    program: torch.export.ExportedProgram, inputs: ExampleInputs, given: dict[str, Any], result: Any
) -> tuple[bytes, Run]:
    runtime: Any = importlib.import_module("onnxruntime")
    try:
        made: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            dynamic_shapes={name: axes for name, axes in inputs.named_axes().items() if isinstance(axes, dict | list)},
            input_names=_names(given),
            output_names=_names(result),
        )
        data: bytes = made.model_proto.SerializeToString()
    except Exception as error:
        raise ModelFactoryError(
            f"the model cannot be exported as onnx: {type(error).__name__}: {_text(error)}. Remedy: export as pt2"
        ) from error
    if len(data) > _MAX_ONNX_BYTES:
        raise ModelFactoryError(f"an ONNX file of {len(data)} bytes; at most 2 GiB are possible. Remedy: export as pt2")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(given: dict[str, Any]) -> list[torch.Tensor]:
        tensors = dict(zip(_names(given), tensors_of(given), strict=True))
        found = session.run(None, {name: tensors[name].numpy() for name in names})
        return [torch.from_numpy(item) if item.ndim else torch.tensor(item) for item in found]

    return data, run


def _names(value: Any) -> list[str]:
    """Return names of the tensors of arguments or results: keys and positions; ``output`` where a name has no key.

    torch.export gives arguments equal names: ``x``, and ``views_0`` for items of a list.
    """
    paths = [path for path, item in tree_flatten_with_path(value)[0] if isinstance(item, torch.Tensor)]
    names = ["_".join(map(_part, path)) for path in paths]
    return [name if name[:1].isalpha() else "_".join(filter(None, ("output", name))) for name in names]


def _part(part: Any) -> str:
    return str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part))))


def _floating_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating parameter; float32 without one."""
    return next((item.dtype for item in model.parameters() if item.is_floating_point()), torch.float32)


def _require_onnx() -> None:
    for name in _ONNX_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ModelFactoryError(
                f"the export to ONNX needs {name}: {error}. Remedy: pip install 'model-factory[onnx]'"
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings and log lines of torch's exporters about their own work."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _text(error: Exception) -> str:
    """Return the text of an error of torch in one line, without the middle of a long text."""
    return shortened(" ".join(str(error).split()), _MAX_TEXT_CHARS)
