"""A model file from somebody else: damaged, of another version, or made to harm the process that loads the file.

``test_hostile_modules.py`` and ``matrix/test_hostile_descriptors.py`` run the attacks by descriptors over files, too.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from matrix.blocks import BLOCKS, WIDTH
from matrix.portability import rebuilt_with_programs
from model_factory import FormatError, IntegrityError, StoreError, load, save
from model_factory.cli.main import main
from model_factory.descriptor.weights import MAX_HEADER_BYTES
from model_factory.digest import Blob, digest_of
from model_factory.documents import FORMAT
from model_factory.limits import MAX_COMPONENTS, MAX_DOCUMENT_BYTES
from model_factory.model_file.index import FILE_FORMAT, INDEX

Change = Callable[[dict[str, Any], dict[str, str]], object]
"""Changes the index and the metadata of a file."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model file with programs."""
    save(rebuilt_with_programs(BLOCKS["SequentialOfBlocks"]()), tmp_path / "model.mf")
    return tmp_path / "model.mf"


def rewrite(path: Path, change: Change) -> None:
    """Write a file again with another index and other metadata; the tensors stay."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    index = json.loads(header["__metadata__"][INDEX])
    change(index, header["__metadata__"])
    header["__metadata__"][INDEX] = json.dumps(index)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def replace_document(kind: str, text: str) -> Change:
    """Put another document in the place of a descriptor or programs, with the right digest."""

    def change(index: dict[str, Any], metadata: dict[str, str]) -> None:
        blob = Blob.of(text.encode())
        index["components"][0][kind] = [blob.digest, blob.size]
        metadata[blob.digest] = text

    return change


def set_in(index: dict[str, Any], place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        index = index[key]
    index[place[-1]] = value


def changed(*place: Any, to: Any) -> Change:
    return lambda index, _: set_in(index, place, to)


FIRST = ("components", 0)

CHANGES: dict[str, tuple[Change, type[Exception], str]] = {
    "another version of the file": (
        changed("file_format", to=99),
        FormatError,
        "Remedy: install model-factory '0.1.0'",
    ),
    "another version of the documents": (changed("format", to=99), FormatError, f"reads {FORMAT}. Remedy: install"),
    "a version that is a text": (changed("file_format", to="1"), FormatError, "expected int"),
    "a version that is true": (changed("file_format", to=True), FormatError, "expected int"),
    "a version that writes to a terminal": (
        lambda index, _: index.update(file_format=9, written_by={"model_factory": "\x1b[2J", "torch": "2"}),
        FormatError,
        r"\\x1b\[2J",
    ),
    "no version": (lambda index, _: index.pop("file_format"), FormatError, "malformed index"),
    "another key": (changed("code", to="import os"), FormatError, "exactly the keys"),
    "another key of a model": (changed(*FIRST, "code", to="import os"), FormatError, "exactly the keys"),
    "no models": (changed("components", to=[]), FormatError, "1 to 256 models"),
    "too many models": (
        lambda index, _: index.update(
            single=False, components=[index["components"][0] | {"name": str(n)} for n in range(MAX_COMPONENTS + 1)]
        ),
        FormatError,
        "1 to 256 models",
    ),
    "two models of one name": (
        lambda index, _: index.update(single=False, components=index["components"] * 2),
        FormatError,
        "the same name",
    ),
    "two models as one": (
        lambda index, _: index["components"].append(index["components"][0] | {"name": "b"}),
        FormatError,
        "a file of a single model has one",
    ),
    "a name that writes to a terminal": (changed(*FIRST, "name", to="a\x1b[2J"), FormatError, "is not a name"),
    "an enormous document": (
        changed(*FIRST, "descriptor", to=["ab" * 32, MAX_DOCUMENT_BYTES + 1]),
        FormatError,
        "a document of",
    ),
    "a negative document": (changed(*FIRST, "descriptor", to=["ab" * 32, -1]), FormatError, "a document of -1"),
    "a digest that is a path": (
        changed(*FIRST, "descriptor", to=["../../etc/passwd", 3]),
        FormatError,
        "is not a digest",
    ),
    "a missing document": (changed(*FIRST, "programs", to=["ab" * 32, 3]), FormatError, "lacks the document abab"),
    "a document of other content": (
        lambda index, metadata: metadata.update({index["components"][0]["programs"][0]: "{}"}),
        IntegrityError,
        "other content",
    ),
    "a descriptor that is no JSON": (replace_document("descriptor", "{"), FormatError, "not a JSON document"),
    "a descriptor without modules": (
        replace_document("descriptor", json.dumps({"format": FORMAT, "modules": [], "tensors": []})),
        FormatError,
        "1 to 100000 modules",
    ),
    "programs of another version": (
        replace_document("programs", json.dumps({"format": FORMAT + 1, "programs": []})),
        FormatError,
        "reads format",
    ),
    "a program that names the system": (
        replace_document(
            "programs",
            json.dumps({"format": FORMAT, "programs": [{"paths": [""], "recorded": {"program": "os.system"}}]}),
        ),
        FormatError,
        "exactly the keys call_signature",
    ),
    "a tensor without a digest": (
        lambda index, _: index["tensors"].pop(next(iter(index["tensors"]))),
        IntegrityError,
        "do not match their digests",
    ),
    "a tensor with another digest": (
        lambda index, _: index["tensors"].update({next(iter(index["tensors"])): digest_of(b"")}),
        IntegrityError,
        "do not match their digests",
    ),
    "digests in a list": (changed("tensors", to=[1]), FormatError, "expected dict"),
    "build info that is code": (changed(*FIRST, "build_info", to=["import os"]), FormatError, "expected dict"),
    "an index that nests": (changed("tensors", to=[[[[]]]]), FormatError, "expected dict"),
}


@pytest.mark.parametrize(("change", "error", "message"), CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_refused(
    change: Change, error: type[Exception], message: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(path, change)
    with pytest.raises(error, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert main(["load", str(path)]) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    assert "\x1b" not in shown.err + shown.out


def test_an_unchanged_file_stays_a_file(path: Path) -> None:
    rewrite(path, lambda *_: None)
    assert load(path)(torch.zeros(2, WIDTH)).shape == (2, WIDTH)


def test_nested_json_ends(path: Path) -> None:
    rewrite(path, lambda _, metadata: metadata.update({"deep": "[" * 100_000}))
    load(path)  # a text that nothing names is not parsed
    rewrite(path, replace_document("descriptor", "[" * 100_000))
    with pytest.raises(FormatError, match="not a JSON document"):
        load(path)


def test_a_tensor_of_no_model_is_refused(path: Path, tmp_path: Path) -> None:
    save({"a": nn.Linear(2, 2), "b": nn.Linear(3, 3)}, tmp_path / "two.mf")
    rewrite(tmp_path / "two.mf", lambda index, _: index["components"].pop())
    with pytest.raises(FormatError, match=r"tensors of no model, or of two models: 'b\.bias', 'b\.weight'"):
        load(tmp_path / "two.mf")


def test_damage_is_found(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.mf: the file is damaged: .* Remedy: copy or save"):
        load(path)
    assert isinstance(load(path, verify=False), nn.Module)  # descriptors and programs are whole


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_part_of_a_file_is_refused(keep: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"model\.mf: this is not a whole weights file"):
        load(path)


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(_Harm()))


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Harm()))


def _long_header(path: Path) -> None:
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def _header_over_the_bound(path: Path) -> None:
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * MAX_HEADER_BYTES)


def _overlapping(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"a": entry, "b": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))


@pytest.mark.parametrize("make", [_archive, _pickled, _long_header, _header_over_the_bound, _overlapping])
def test_another_kind_of_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "model.mf")
    with pytest.raises(FormatError, match="not a whole weights file"):
        load(tmp_path / "model.mf")


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(FormatError, match=r"without models\. Remedy: "):
            load(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    started = time.monotonic()
    with pytest.raises(FormatError, match="is not a file"):
        load(tmp_path / "fifo")
    assert time.monotonic() - started < 5
    with pytest.raises(FormatError, match="is not a file"):
        load("/dev/zero")
    for missing in (tmp_path / "missing.mf", tmp_path):
        with pytest.raises(StoreError, match="cannot be read: No such file"):
            load(missing)


def test_a_name_of_no_model(path: Path) -> None:
    with pytest.raises(FormatError, match="no model 'modle'; the file has 'model'; did you mean 'model'"):
        load(path, components=["modle"])


def test_nothing_of_the_file_is_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    before = set(sys.modules)
    load(path)
    assert set(sys.modules) == before


def test_the_version_of_the_format_is_pinned() -> None:
    """A change of either number is a decision: docs/versions.md."""
    assert (FILE_FORMAT, INDEX) == (1, "model_factory")
