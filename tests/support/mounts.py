"""Whether a test can mount a file system of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
"""Runs a command as root of a user namespace, with mounts that nobody else sees."""


@cache
def may_mount() -> bool:
    """Whether root, or another user in a namespace, can mount a disk in memory."""
    if os.geteuid() != 0 and shutil.which(NAMESPACE[0]) is None:
        return False
    inside = () if os.geteuid() == 0 else NAMESPACE
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*inside, "mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False)
        if done.returncode == 0 and os.geteuid() == 0:
            subprocess.run(["umount", folder], check=True)
    return done.returncode == 0
