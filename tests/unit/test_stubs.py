"""The checked-in stubs are what the proto files generate."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKED_IN = ROOT / "client" / "model_factory" / "v1"


def stubs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if "_pb2" in path.name}


def test_stubs_are_up_to_date(tmp_path):
    subprocess.run([sys.executable, str(ROOT / "scripts" / "generate_stubs.py"), str(tmp_path)], check=True)
    assert stubs(CHECKED_IN) == stubs(tmp_path / "model_factory" / "v1")


def test_every_proto_file_has_a_stub():
    names = {path.stem for path in (ROOT / "proto" / "model_factory" / "v1").glob("*.proto")}
    assert {f"{name}_pb2.py" for name in names} <= set(stubs(CHECKED_IN))
