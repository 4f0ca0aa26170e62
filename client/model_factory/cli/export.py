"""The command ``export``: writes a model of a file as a program for machines without model-factory."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch

from model_factory.cli.output import say
from model_factory.descriptor.weights import map_weights, open_weights
from model_factory.errors import FormatError
from model_factory.exported.comparison import sizes_text
from model_factory.exported.export import export as export_model
from model_factory.exported.inputs import parse_inputs
from model_factory.model_file.load import ModelFile
from model_factory.source.trust import Trust
from model_factory.store.staging import whole_file
from model_factory.wording import listed


def export(
    path: Path,
    file_format: str,
    *,
    name: str | None,
    shapes: Sequence[str],
    values: Path | None,
    output: Path | None,
    trust_source: Path | None,
) -> int:
    """Export a model of a file, compare the program with the model, and write the program.

    Args:
        path: The model file.
        file_format: ``pt2`` or ``onnx``.
        name: The model to export; None: the only one.
        shapes: Inputs of the form ``NAME=[DTYPE:]AXIS,AXIS,...``.
        values: A safetensors file with example values.
        output: The file to write; None: ``path`` with the suffix of the format.
        trust_source: Lock file with the trusted source; None trusts no source.
    """
    with ModelFile(path) as file, file.errors():
        chosen = file.checked_name(name) if name is not None else _only_name(file)
        file.verify([chosen])
        model = file.build(chosen, Trust(trust_source))
    inputs = parse_inputs(shapes, None if values is None else _read_values(values))
    if not inputs.by_name:
        known = listed(_parameters(model))
        raise FormatError(
            f"{path}: the sizes of inputs are not in a model file; the forward of {chosen!r} takes {known}. Remedy: "
            "--input NAME=AXIS,AXIS,... for each, for example --input observation=batch,12"
        )
    exported = export_model(model, inputs, file_format)
    place = path.with_suffix(f".{file_format}") if output is None else output
    with whole_file(place) as target:
        target.write(exported.data)
    calls = "; ".join(sizes_text(sizes) or "fixed sizes" for sizes in exported.compared.sizes)
    say(f"{place}: {len(exported.data):,} bytes")
    say(f"  compared with the model at {calls}: largest difference {exported.compared.largest_difference:.3g}")
    return 0


def _only_name(file: ModelFile) -> str:
    if len(file.names) > 1:
        raise FormatError(f"the file has the models {listed(file.names)}. Remedy: choose with --model NAME")
    return file.names[0]


def _read_values(path: Path) -> dict[str, torch.Tensor]:
    with open_weights(path) as file:
        try:
            return map_weights(file)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from None


def _parameters(model: torch.nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)
