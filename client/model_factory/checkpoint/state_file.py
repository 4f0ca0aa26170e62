"""State dicts in files: safetensors, mapped; and files of ``torch.save``, read without code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model_factory.descriptor.weights import MAX_HEADER_BYTES, WEIGHTS_NAME, map_weights, open_weights
from model_factory.documents import parse_json
from model_factory.errors import FormatError
from model_factory.wording import listed, quoted, shortened

_ZIP = b"PK\x03\x04"
_OLD = b"\x80\x02"  # files of torch before 1.6
_MAX_TEXT_CHARS = 300

INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
"""Name of the index in a folder with weights in several files, as on the Hugging Face Hub."""


def read_state(path: Path, entry: str | None = None, *, writable: bool = True) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name; ``entry`` is the key of the state dict in a file with more.

    Tensors of safetensors files and of ``torch.save`` are mapped privately: a write copies the written pages, and the
    file never changes. Nothing in a file is executed. Without ``writable``, tensors of safetensors files are for copies
    only.

    Raises:
        FormatError: the file is not a state dict.
        StoreError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_file({"weight": torch.ones(2)}, folder / "layer.safetensors")
        >>> read_state(folder / "layer.safetensors")
        {'weight': tensor([1., 1.])}
    """
    if not (path / WEIGHTS_NAME).exists() and (path / INDEX_NAME).exists():
        return _read_parts(path, entry, writable=writable)
    with open_weights(path) as file:
        start = os.pread(file.fileno(), len(_ZIP), 0)
        if start == _ZIP or start[:2] == _OLD:
            return _tensors(_read_torch(path, is_mapped=start == _ZIP), path, entry)
        if entry is not None:
            raise FormatError(f"{path} is no file of torch.save, and has no entries. Remedy: leave out entry")
        try:
            return map_weights(file, writable=writable)
        except FormatError as error:
            raise FormatError(
                f"{path} is neither a safetensors file nor a file of torch.save: {error}. Remedy: write the file with "
                "safetensors.torch.save_file(model.state_dict(), PATH)"
            ) from None


def state_files(path: Path) -> list[Path]:
    """Return the files that :func:`read_state` reads for a path.

    Raises:
        FormatError: an index of parts is malformed.
        StoreError: an index cannot be read.
    """
    if not path.is_dir():
        return [path]
    if (path / WEIGHTS_NAME).exists() or not (path / INDEX_NAME).exists():
        return [path / WEIGHTS_NAME]
    return [path / INDEX_NAME, *(path / part for part in dict.fromkeys(_read_index(path).values()))]


def _read_parts(folder: Path, entry: str | None, *, writable: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder with an index of several files."""
    names = _read_index(folder)
    parts = {part: read_state(folder / part, entry, writable=writable) for part in dict.fromkeys(names.values())}
    absent = [name for name, part in names.items() if name not in parts[part]]
    if absent:
        raise FormatError(f"{folder / INDEX_NAME} names tensors that the parts lack: {listed(absent)}")
    return {name: parts[part][name] for name, part in names.items()}


def _read_index(folder: Path) -> dict[str, str]:
    """Return the part of each tensor; a part is the name of a file in the folder, and never a path."""
    index = folder / INDEX_NAME
    with open_weights(index) as file:
        data = file.read(MAX_HEADER_BYTES)
    try:
        return {name: _part_name(part) for name, part in parse_json(data)["weight_map"].items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise FormatError(f"{index} is not an index of safetensors files: {type(error).__name__}: {error}") from None


def _part_name(name: str) -> str:
    if name in {"", ".."} or name != Path(name).name:
        raise ValueError(f"{quoted(name)} is not the name of a file in the folder")
    return name


def _read_torch(path: Path, *, is_mapped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except Exception as error:  # noqa: BLE001  an unpickler of a damaged file may raise any error
        text = shortened(" ".join(str(error).split()), _MAX_TEXT_CHARS)
        raise FormatError(
            f"{path} cannot be read without code: {type(error).__name__}: {text}. Remedy: write a file with tensors "
            "only: safetensors.torch.save_file(model.state_dict(), PATH)"
        ) from None


def _tensors(state: Any, path: Path, entry: str | None) -> dict[str, torch.Tensor]:
    if entry is not None:
        if not isinstance(state, Mapping) or entry not in state:
            known = listed(map(str, state)) if isinstance(state, Mapping) else "none"
            raise FormatError(f"{path} has no entry {quoted(entry)}; entries: {known}")
        state = state[entry]
    if not isinstance(state, Mapping):
        raise FormatError(f"{path} holds a {type(state).__name__}. Remedy: save a state dict")
    tensors = {name: item for name, item in state.items() if isinstance(name, str) and isinstance(item, torch.Tensor)}
    if state and not tensors:
        raise FormatError(
            f"{path} has no tensors at its first level; entries: {listed(map(str, state))}. Remedy: "
            "name the entry with the state dict, entry=NAME"
        )
    return tensors
