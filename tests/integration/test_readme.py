"""The first example of the README, run as a newcomer runs it: one config, one script, nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def first_block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no block in {language}"
    return found[1]


def test_the_config_has_ten_lines() -> None:
    assert len(first_block("yaml").splitlines()) == 10


def test_the_example_builds_and_trains(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(first_block("yaml"), encoding="utf-8")
    (tmp_path / "train.py").write_text(first_block("python"), encoding="utf-8")
    environment = os.environ | {"MODEL_FACTORY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "train.py"],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (loss,) = re.findall(r"^loss (\d+\.\d+)$", done.stdout, re.MULTILINE)
    assert float(loss) < 1.0, "an untrained policy has a loss of about 1"
