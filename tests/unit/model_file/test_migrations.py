"""Model files of earlier formats: the numbers are raised here, and files of today are files of earlier formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model_factory import FormatError, ModelFactoryError, load, save
from model_factory.cli.main import main
from model_factory.descriptor import codec
from model_factory.documents import FORMAT, encode_document
from model_factory.model_file import index, migrations
from model_factory.model_file import load as loading
from model_factory.model_file.index import FILE_FORMAT, INDEX
from model_factory.model_file.migrations import DocumentRewrites, Rewrite
from model_factory_server import PolicyConstructorModelFactory
from support.configs import layers

CONFIG = layers({"_type_": "model_factory.SelfCheck", "width": 3}, {"_type_": "nn.ReLU"})


def _raise_formats(monkeypatch: pytest.MonkeyPatch, by: int, file_by: int) -> None:
    for module in (codec, index, loading):
        monkeypatch.setattr(module, "FORMAT", FORMAT + by)
    monkeypatch.setattr(index, "FILE_FORMAT", FILE_FORMAT + file_by)


def _replaced(old: str, new: str) -> Rewrite:
    """A function that renames one class or op in a document."""
    return lambda document: json.loads(json.dumps(document).replace(json.dumps(old), json.dumps(new)))


def _unchanged(document: dict[str, Any]) -> dict[str, Any]:
    return document


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file in the formats of today."""
    save({"policy": PolicyConstructorModelFactory(seed=3).build({"config": CONFIG})}, tmp_path / "policy.mf")
    return tmp_path / "policy.mf"


def test_every_earlier_version_has_a_migration() -> None:
    assert sorted(migrations.DOCUMENTS) == list(range(5, FORMAT))
    assert sorted(migrations.INDEX) == list(range(1, FILE_FORMAT))


def test_a_file_of_an_earlier_format_opens(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two versions of documents and one of the index later: each function rewrites its documents, in order."""
    before = load(saved)["policy"]
    x = torch.randn(2, 4, 3)
    _raise_formats(monkeypatch, by=2, file_by=1)
    seen: list[int] = []

    def noted(document: dict[str, Any]) -> dict[str, Any]:
        seen.append(document["format"])
        return document

    first = DocumentRewrites(descriptor=_replaced("nn.ReLU", "nn.GELU"), programs=noted)
    second = DocumentRewrites(descriptor=_replaced("nn.GELU", "nn.Tanh"), programs=noted)
    monkeypatch.setattr(migrations, "DOCUMENTS", {FORMAT: first, FORMAT + 1: second})

    def with_another_author(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"written_by": document["written_by"] | {"model_factory": "0.0.9, rewritten"}}

    monkeypatch.setattr(migrations, "INDEX", {FILE_FORMAT: with_another_author})
    after = load(saved)["policy"]
    assert type(after.graph_modules["layer1"]) is torch.nn.Tanh
    assert type(before.graph_modules["layer1"]) is torch.nn.ReLU
    for name, item in after.state_dict().items():
        assert torch.equal(item, before.state_dict()[name])
    assert after.build_info == before.build_info
    assert torch.equal(after(x), before.graph_modules["layer0"](x).tanh())
    assert seen == [FORMAT, FORMAT + 1]
    assert main(["load", str(saved)]) == 0
    shown = capsys.readouterr().out
    assert "nn.Tanh" in shown
    assert "written by model-factory 0.0.9, rewritten with torch" in shown
    after.graph_modules["layer1"] = torch.nn.ReLU()
    save({"policy": after}, saved)  # in the formats of this version
    monkeypatch.setattr(migrations, "DOCUMENTS", {})
    monkeypatch.setattr(migrations, "INDEX", {})
    assert type(load(saved)["policy"].graph_modules["layer1"]) is torch.nn.ReLU


def test_a_format_without_a_migration_is_refused_by_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _raise_formats(monkeypatch, by=2, file_by=0)
    only_second = {FORMAT + 1: DocumentRewrites(descriptor=_unchanged, programs=_unchanged)}
    monkeypatch.setattr(migrations, "DOCUMENTS", only_second)
    message = rf"format is {FORMAT}, and this version of model-factory reads {FORMAT + 1} and {FORMAT + 2}\. Remedy: "
    with pytest.raises(FormatError, match=message):
        load(saved)
    _raise_formats(monkeypatch, by=-1, file_by=0)
    monkeypatch.setattr(migrations, "DOCUMENTS", {})
    with pytest.raises(
        FormatError, match=rf"format is {FORMAT}, and this version of model-factory reads {FORMAT - 1}\."
    ):
        load(saved)


def _failing(error: Callable[[dict[str, Any]], Any]) -> Rewrite:
    def rewrite(document: dict[str, Any]) -> dict[str, Any]:
        error(document)
        raise AssertionError("the document has everything")

    return rewrite


@pytest.mark.parametrize(
    "rewrite",
    [
        _failing(lambda document: document["a key that a malformed document lacks"]),
        _failing(lambda document: document["modules"][10**6]),
        _failing(lambda document: document["modules"].items()),
        _failing(lambda document: int(document["format"] and "x")),
        lambda document: {**document, "modules": [{"kind": "harm"}]},
    ],
)
def test_a_malformed_document_is_an_error_of_the_file(
    rewrite: Rewrite, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _raise_formats(monkeypatch, by=1, file_by=0)
    monkeypatch.setattr(migrations, "DOCUMENTS", {FORMAT: DocumentRewrites(descriptor=rewrite, programs=_unchanged)})
    with pytest.raises(FormatError, match=r"policy\.mf: "):
        load(saved)


@pytest.mark.parametrize("version", [None, "5", 5.5, True, -1, 10**30, [], {}])
@pytest.mark.parametrize("key", ["format", "file_format"])
def test_false_versions_are_refused(key: str, version: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata[INDEX] = encode_document(json.loads(metadata[INDEX]) | {key: version}).decode()
    save_file(tensors, saved, metadata)
    _raise_formats(monkeypatch, by=1, file_by=1)
    monkeypatch.setattr(migrations, "DOCUMENTS", {FORMAT: DocumentRewrites(descriptor=_unchanged, programs=_unchanged)})
    monkeypatch.setattr(migrations, "INDEX", {FILE_FORMAT: _unchanged})
    with pytest.raises(ModelFactoryError):
        load(saved)
