"""Virtual environments with the client only, as ``pip install model-factory`` makes them, with chosen versions."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from versions.legs import Leg

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-versions"
TEST_PACKAGES = ("pytest>=8.3", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "cryptography>=43")
"""For the tests of the client that run in the environment; none of them is a package that the client imports."""


def make_environment(leg: Leg) -> Path:
    """Return the interpreter of the environment of a leg; make the environment unless it is there already."""
    folder = FOLDER / leg.name
    python = folder / "bin" / "python"
    wanted = hashlib.sha256(f"{leg}{TEST_PACKAGES}{(ROOT / 'pyproject.toml').read_text('utf-8')}".encode()).hexdigest()
    stamp = folder / "installed"
    if not (stamp.exists() and stamp.read_text("utf-8") == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        _run(_interpreter(leg.python), "-m", "venv", folder)
        # PyPI's own builds, whatever else this machine's pip is set up to prefer.
        environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
        environment.pop("PIP_FIND_LINKS", None)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(*pip, *leg.requirements, *TEST_PACKAGES, ROOT, environment=environment)
        stamp.write_text(wanted, encoding="utf-8")
    # The client's files of now, in the place of those of the day of the installation.
    _run(python, "-c", _REPLACE, ROOT / "client" / "model_factory")
    return python


_REPLACE = """
import pathlib, shutil, sys, sysconfig
installed = pathlib.Path(sysconfig.get_paths()["purelib"], "model_factory")
shutil.rmtree(installed)
shutil.copytree(sys.argv[1], installed, ignore=shutil.ignore_patterns("__pycache__"))
"""


def _interpreter(command: str) -> str:
    """Return the path of an interpreter, pyenv's included; the running interpreter if there is none."""
    release = command.removeprefix("python")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(command), *sorted(map(str, pyenv.glob(f"{release}.*/bin/{command}")))]
    for candidate in filter(None, candidates):
        found = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if found.stdout.startswith(f"Python {release}."):
            return candidate
    print(f"this machine has no {command}: the environment has Python {sys.version.split()[0]}", flush=True)
    return sys.executable


def _run(*command: object, environment: dict[str, str] | None = None) -> None:
    subprocess.run([*map(str, command)], check=True, env=environment)
