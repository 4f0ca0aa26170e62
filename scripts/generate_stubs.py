"""Generates the gRPC stubs in client/model_factory/v1 from proto/.

Usage: python scripts/generate_stubs.py [OUTPUT_DIR]

The stubs are checked in as protoc writes them. Generate with the grpcio-tools that the dev extra pins: its code loads
under many versions of protobuf.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(output: Path) -> None:
    """Write the stubs of every proto file under ``output/model_factory/v1``."""
    files = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    services = [name for name in files if name.endswith("service.proto")]
    base = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    for arguments in (
        [f"--python_out={output}", f"--pyi_out={output}", *files],
        [f"--grpc_python_out={output}", *services],
    ):
        if protoc.main([*base, *arguments]) != 0:
            sys.exit(1)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "client")
