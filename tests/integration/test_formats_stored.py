"""Documents that a server and a node keep, and calls that are sent, are valid by the schemas of ``docs/formats``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_factory import RemoteModelFactory
from model_factory.client import program_client
from support.cases import CASES
from support.configs import layers
from support.format_examples import header_of
from support.plugins.reading import write
from support.schemas import check
from support.server import ServerProcess, running_server

PLUGINS = Path(__file__).parents[1] / "support" / "plugins"
WIDE = {"_type_": "nn.Linear", "in_features": 256, "out_features": 256}  # is constructed in its weights file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the operator allows."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def server_of_all(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that shares source and reads files."""
    arguments = ["--plugin", "reading", "--plugin", "routed.plugin", "--share-source", "--allow-files", str(data)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
        with running_server(tmp_path_factory.mktemp("formats") / "store", *arguments) as process:
            yield process


def configs(data: Path) -> dict[str, Any]:
    """One component for each document that a build may need."""
    path = data / "value.file"
    write("open", path, 2.0)
    return {
        **{name: case.config for name, case in CASES.items()},
        "wide": layers(WIDE),
        "reads": layers({"_type_": "filled", "path": str(path), "reader": "open"}),
        "routed": layers({"_type_": "router", "width": 6, "experts": 3}),
    }


def records(store: Path) -> Iterator[Any]:
    for path in (store / "records").glob("*/*"):
        record = json.loads(path.read_bytes())
        assert record["key"] == path.name
        assert path.parent.name == path.name[:2]
        yield record


def kind_of_record(document: Any) -> str:
    if isinstance(document, list):
        return "read-paths"
    if "blobs" not in document:
        return "node-programs"
    if "weights" in document["blobs"]:
        return "build-record"
    return "description-record" if "descriptor" in document["blobs"] else "program-record"


def check_blob(store: Path, kind: str, digest: str, size: int) -> None:
    path = store / "blobs" / digest[:2] / digest
    assert path.stat().st_size == size
    if kind == "weights":
        check("weights-header", header_of(path))
    else:
        check("source-bundle" if kind == "source" else kind, path.read_bytes())


@pytest.mark.slow
def test_every_kept_document_and_every_sent_call_is_valid(
    server_of_all: ServerProcess,
    data: Path,
    tmp_path: Path,
    make_remote: Callable[..., RemoteModelFactory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[bytes] = []

    def noted(*arguments: Any, **named: Any) -> bytes:
        sent.append(encode(*arguments, **named))
        return sent[-1]

    encode = program_client.encode_call_without_values
    monkeypatch.setattr(program_client, "encode_call_without_values", noted)
    factory = make_remote(server_of_all.address, trust_source=True)
    models = factory.build(configs(data))
    inputs = CASES["action_decoder"].inputs(2, 3)
    models["action_decoder"](**inputs | {"time": inputs["time"][:, None]})  # a call signature without a program

    assert sent
    assert len(set(sent)) == 1  # written again by the replay
    check("call", sent[0])
    kinds: Counter[str] = Counter()
    for record in records(server_of_all.store):
        kind = kind_of_record(record["document"])
        check(kind, record)
        kinds[kind] += 1
        for name, (digest, size) in () if kind == "read-paths" else record["document"]["blobs"].items():
            check_blob(server_of_all.store, name, digest, size)
            kinds[name] += 1
    kept = list(records(tmp_path / "cache"))
    for record in kept:
        check("node-programs", record)
        check("programs", record["document"]["programs"].encode())
    assert len(kept) == 1
    blobs = {"descriptor", "programs", "weights", "source", "placement"}
    assert kinds.keys() == {"build-record", "description-record", "program-record", "read-paths"} | blobs
