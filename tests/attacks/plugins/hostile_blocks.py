"""Blocks that misbehave in every way that code in a worker process can."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn


class Segfaults(nn.Module):
    """Reads address 0."""

    def __init__(self) -> None:
        super().__init__()
        ctypes.string_at(0)


class Spins(nn.Module):
    """Uses the processor for ever; with ``children``, so do its own processes, which note their numbers in a file."""

    def __init__(self, notes: str = "", children: int = 0) -> None:
        super().__init__()
        processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(children)]
        if notes:
            Path(notes).write_text(" ".join(str(process.pid) for process in processes), encoding="utf-8")
        while True:
            pass


class Sleeps(nn.Module):
    """Takes its time, and says in a file that it has begun."""

    def __init__(self, notes: str, seconds: float = 60.0) -> None:
        super().__init__()
        with Path(notes).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        self.layer = nn.Linear(2, 2)


class FailsFor(nn.Module):
    """Waits for a file, and fails if there is another one: a licence that is away, a file system that is not mounted.

    Says in a third file that it has begun to be built; planning it, on meta, it does nothing of this.
    """

    def __init__(self, notes: str, go: str, cause: str) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        if self.layer.weight.is_meta:
            return
        with Path(notes).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        while not Path(go).exists():
            time.sleep(0.01)
        if Path(cause).exists():
            raise RuntimeError(f"{cause} is in the way")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class NeedsRealTensors(nn.Module):
    """Cannot be built on meta, so its size is not known before it is built."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        weight = torch.ones(numbers)
        self.first = weight[0].item()  # refused by the meta device
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.first


class HoardsObjects(nn.Module):
    """Fills the memory with Python objects, on meta too."""

    def __init__(self) -> None:
        super().__init__()
        self.hoard = [b"x" * 1024]
        while True:
            self.hoard += [bytes(1024 * 1024)]


class Tells(nn.Module):
    """Puts what it can see of the outside into an error."""

    def __init__(self, what: str, address: str = "") -> None:
        super().__init__()
        raise ValueError(f"seen: {getattr(self, what)(address)}")

    def environment(self, _address: str) -> str:
        initial = Path("/proc/self/environ").read_bytes().decode(errors="replace")
        try:
            parent = repr(Path(f"/proc/{os.getppid()}/environ").read_bytes())
        except PermissionError as error:
            parent = type(error).__name__
        return f"{dict(os.environ)} {initial} {parent}"

    def network(self, address: str) -> str:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError as error:
            return type(error).__name__
        return "connected"

    def limits(self, _address: str) -> str:
        return Path("/proc/self/limits").read_text(encoding="ascii")


class FillsTheDisk(nn.Module):
    """Writes a file that never ends."""

    def __init__(self, path: str) -> None:
        super().__init__()
        with Path(path).open("wb") as file:
            while True:
                file.write(bytes(1024 * 1024))


def register(registry: object) -> None:
    for block in (Segfaults, Spins, Sleeps, FailsFor, NeedsRealTensors, HoardsObjects, Tells, FillsTheDisk):
        registry.register_module(f"hostile.{block.__name__}", block)  # type: ignore[attr-defined]
