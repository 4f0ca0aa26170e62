"""The examples do what they say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_flow_policy_trains(server, tmp_path):
    command = [sys.executable, "examples/flow_policy/train.py", "--server", server.address, "--steps", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "built        4 models" in done.stdout
    counts = [int(text.replace(",", "")) for text in re.findall(r"([\d,]+) parameters", done.stdout)]
    assert sum(counts) == 175_200_808
    assert len(re.findall(r"^step ", done.stdout, re.MULTILINE)) == 2
