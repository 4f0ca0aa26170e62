"""What the operator lets configs import; it imports more itself."""

from __future__ import annotations

import os
import subprocess

from torch import nn


class Scale(nn.Linear):
    """A linear layer by another name."""


class _Hidden(nn.Linear):
    pass


def run(command: str) -> nn.Module:
    """Does harm, as an operator would not write it; here to show what may not be reached is not."""
    raise AssertionError(command)


system = os.system
Popen = subprocess.Popen
