"""The pages about files: all blocks of Python of a page run as written, and so do all commands of a page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support.cases import CASES
from support.server import ServerProcess

ROOT = Path(__file__).parents[2]


def blocks(name: str, language: str) -> list[str]:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page, re.MULTILINE | re.DOTALL)
    assert found, f"{name} has no block in {language}"
    return [textwrap.dedent(text) for _, text in found]


def run(command: list[str], folder: Path, **variables: str) -> str:
    environment = os.environ | {"MODEL_FACTORY_CACHE": str(folder / "cache")} | variables
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["checkpoints.md", "model-files.md"])
def test_the_python_of_a_page_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(blocks(name, "python")), encoding="utf-8")
    run([sys.executable, "page.py"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("model-files.md", ["checked", "policy: needs no source code"]),
        ("to-the-robot.md", ["policy.pt2: ", "policy.onnx: ", "largest difference 0\n", "actions ["]),
    ],
)
def test_the_commands_of_a_page_run(name: str, outputs: list[str], server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_bytes(CASES["mlp"].config.read_bytes())
    for script in (ROOT / "examples" / "robot").glob("*.py"):
        (tmp_path / script.name).symlink_to(script)
    text = "\n".join(["set -e", *blocks(name, "sh")])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shown = run(["bash", "-c", text], tmp_path, MODEL_FACTORY_SERVER=server.address, PATH=path)
    assert [part for part in outputs if part not in shown] == []
