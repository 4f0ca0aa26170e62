"""Blocks whose weights come from files, read in every way that constructors read files."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn


def _opened(path: str) -> float:
    with open(path, encoding="ascii") as file:  # noqa: PTH123  what constructors do
        return float(file.read())


def _os_open(path: str) -> float:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return float(os.read(descriptor, 100))
    finally:
        os.close(descriptor)


def _beside_a_folder(path: str) -> float:
    folder = os.open(Path(path).parent, os.O_RDONLY)
    descriptor = os.open(Path(path).name, os.O_RDONLY, dir_fd=folder)
    try:
        return float(os.read(descriptor, 100))
    finally:
        os.close(descriptor)
        os.close(folder)


def _safe_open(path: str) -> float:
    with safetensors.safe_open(path, framework="pt") as file:
        return float(file.get_tensor("a"))


def _sqlite(path: str) -> float:
    connection = sqlite3.connect(path)
    try:
        return float(connection.execute("select a from t").fetchone()[0])
    finally:
        connection.close()


def _jit(path: str) -> float:
    with warnings.catch_warnings(action="ignore"):
        return float(torch.jit.load(path).weight.detach())


def _folder(path: str) -> float:
    return float(len(list(Path(path).glob("*.shard"))))


READERS: dict[str, Callable[[str], float]] = {
    "open": _opened,
    "read_text": lambda path: float(Path(path).read_text(encoding="ascii")),
    "json": lambda path: float(json.loads(Path(path).read_bytes())),
    "os.open": _os_open,
    "dir_fd": _beside_a_folder,
    "sqlite": _sqlite,
    "folder": _folder,
    "torch.load": lambda path: float(torch.load(path, weights_only=True)["a"]),
    "torch.load mmap": lambda path: float(torch.load(path, weights_only=True, mmap=True)["a"]),
    "torch.from_file": lambda path: float(torch.from_file(path, size=1)),
    "storage": lambda path: float(
        torch.UntypedStorage.from_file(path, False, 4).nbytes() and torch.from_file(path, size=1)
    ),
    "archive": lambda path: (
        float(torch._C.PyTorchFileReader(path).get_record("data.pkl")[:1] == b"\x80")
        * float(torch.load(path, weights_only=True)["a"])
    ),
    "jit": _jit,
    "safetensors": lambda path: float(safetensors.torch.load_file(path)["a"]),
    "safe_open": _safe_open,
    "numpy": lambda path: float(np.load(path)[0]),
    "numpy mmap": lambda path: float(np.load(path, mmap_mode="r")[0]),
    "memmap": lambda path: float(np.memmap(path, dtype=np.float32, mode="r")[0]),
    "fromfile": lambda path: float(np.fromfile(path, dtype=np.float32)[0]),
    "loadtxt": lambda path: float(np.loadtxt(path)),
}


class Filled(nn.Module):
    """A layer that is filled with a number from a file."""

    def __init__(self, path: str, reader: str = "open", *, forgiving: bool = False) -> None:
        super().__init__()
        try:
            value = READERS[reader](path)
        except Exception:
            if not forgiving:
                raise
            value = -1.0
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.layer.weight, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Slow(Filled):
    """Tells when the file was read, and waits until the test goes on; the first time alone."""

    def __init__(self, path: str, folder: str) -> None:
        super().__init__(path)
        if torch.get_default_device().type == "meta" or Path(folder, "read").exists():
            return
        Path(folder, "read").touch()
        for _ in range(200):
            if Path(folder, "go").exists():
                return
            time.sleep(0.05)


class Sized(nn.Module):
    """A layer whose width stands in a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.layer = nn.Linear(int(_opened(path)), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Scaling(nn.Module):
    """A forward with a constant from a file, which no attribute of the module tells."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)
        factor = _opened(path)
        self._scale: Any = _Scale(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self._scale.factor


class _Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor


class Temporary(nn.Module):
    """Writes a file and reads the file."""

    def __init__(self, folder: str, *, native: bool = False) -> None:
        super().__init__()
        path = f"{folder}/written-{os.getpid()}"
        if native:
            torch.save({"a": torch.tensor(2.0)}, path)
            value = READERS["torch.load"](path)
        else:
            Path(path).write_text("2.0", encoding="ascii")
            value = _opened(path)
        Path(path).unlink()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.layer.weight, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def write(reader: str, path: Path, value: float) -> None:
    """Write a number in the format of a reader."""
    if reader == "folder":
        path.mkdir(exist_ok=True)
        for old in path.iterdir():
            old.unlink()
        for number in range(int(value)):
            (path / f"{number}.shard").touch()
        return
    path.unlink(missing_ok=True)
    if reader.startswith(("torch.load", "archive")):
        torch.save({"a": torch.tensor(value)}, path)
    elif reader.startswith("safe"):
        safetensors.torch.save_file({"a": torch.tensor(value)}, path)
    elif reader.startswith("numpy"):
        with path.open("wb") as file:
            np.save(file, np.array([value]))
    elif reader in {"memmap", "fromfile", "torch.from_file", "storage"}:
        np.array([value], dtype=np.float32).tofile(path)
    elif reader == "jit":
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(layer).save(str(path))  # type: ignore[no-untyped-call]
    elif reader == "sqlite":
        connection = sqlite3.connect(path)
        connection.execute("create table t (a real)")
        connection.execute("insert into t values (?)", (value,))
        connection.commit()
        connection.close()
    else:
        path.write_text(str(value), encoding="ascii")


def register(registry: Any) -> None:
    for name, block in {
        "filled": Filled,
        "slow": Slow,
        "sized": Sized,
        "scaling": Scaling,
        "temporary": Temporary,
    }.items():
        registry.register_module(name, block)
