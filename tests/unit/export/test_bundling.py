"""The files that a class needs, from import statements of every kind."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_factory.digest import digest_of
from model_factory.errors import FormatError, NotPortableError
from model_factory.source.bundle import Bundle, Requirement, decode_bundle, encode_bundle
from model_factory.source.loader import load_source
from model_factory_server.export.source.bundling import Root, collect

Write = Callable[[dict[str, str]], tuple[Root, ...]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_files(files: dict[str, str]) -> tuple[Root, ...]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return (Root(tmp_path, frozenset({"lib", "alone"})),)

    return write_files


LIBRARY = {
    "lib/__init__.py": "import yaml\nfrom .shadow import shadow\nVALUE = 1\n",
    "lib/a.py": "A = 'lib.a'\n",
    "lib/b.py": "from . import a\nB = a.A\n",
    "lib/shadow.py": "def shadow(): return 'function'\n",
    "lib/sub/__init__.py": "from lib.b import B\nDEEP = 2\n",
    "lib/sub/c.py": "from ..a import A as C\n",
    "lib/space/d.py": "import lib.a as renamed\nD = renamed.A\n",
    "other/x.py": "",
}

STATEMENTS = {
    "from . import a\nX = a.A": {"lib/a.py"},
    "from .a import A as X": {"lib/a.py"},
    "from lib import a\nX = a.A": {"lib/a.py"},
    "from lib.a import *\nX = A": {"lib/a.py"},
    "import lib.a as a\nX = a.A": {"lib/a.py"},
    "import lib.a\nX = lib.a.A": {"lib/__init__.py", "lib/shadow.py", "lib/a.py"},
    "import lib.a, os\nX = lib.VALUE, os.name": {"lib/__init__.py", "lib/shadow.py", "lib/a.py"},
    "from lib import VALUE as X": {"lib/__init__.py", "lib/shadow.py"},
    "from lib import shadow\nX = shadow()": {"lib/__init__.py", "lib/shadow.py"},
    "from . import b\nX = b.B": {"lib/b.py", "lib/a.py"},
    "from .sub import c\nX = c.C": {"lib/sub/c.py", "lib/a.py"},
    "from .sub import DEEP as X": {"lib/sub/__init__.py", "lib/b.py", "lib/a.py"},
    "from lib.space.d import D as X": {"lib/space/d.py", "lib/a.py"},
    "from lib.space import d\nX = d.D": {"lib/space/d.py", "lib/a.py"},
    "def f():\n    from lib.a import A\n    return A\nX = f()": {"lib/a.py"},
    "class K:\n    import lib.a as inner\nX = K.inner.A": {"lib/a.py"},
    "try:\n    import lib.a as a\nexcept ImportError:\n    a = None\nX = a.A": {"lib/a.py"},
    "try:\n    from lib import missing\nexcept ImportError:\n    X = 1": {"lib/__init__.py", "lib/shadow.py"},
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib.b import B\nelse:\n    X = 1": set(),
    "import alone\nX = alone.Y": {"alone.py"},
}


@pytest.mark.parametrize("text", STATEMENTS)
def test_imports_are_followed_and_run(text: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module from the bundle equals Python's own import of the same files, and the bundle has no unneeded file."""
    klass = "\nclass Block:\n    value = X\n"
    roots = write(LIBRARY | {"alone.py": "Y = 'alone'\n", "lib/block.py": text + klass})
    data = collect({"lib.block"}, roots)
    assert set(decode_bundle(data).files) == STATEMENTS[text] | {"lib/block.py"}
    loaded = load_source(data, digest_of(data), "a test").find_class("lib.block", "Block")
    monkeypatch.syspath_prepend(roots[0].folder)
    try:
        original = importlib.import_module("lib.block").Block
        assert loaded.value == original.value or callable(loaded.value)
        assert loaded is not original
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in {"lib", "alone"}]:
            del sys.modules[name]


def test_third_party_imports_are_declared(write: Write) -> None:
    text = """
import json, numpy.linalg
import torch.nn as nn
from einops import rearrange
import nowhere_at_all
import model_factory.errors
try:
    import optional_thing
except (ImportError, OSError):
    optional_thing = None
try:
    import tried_but_needed
finally:
    pass
def later():
    import yaml
"""
    bundle = decode_bundle(collect({"lib.block"}, write({"lib/block.py": text})))
    assert [item.module for item in bundle.requires] == [
        "einops",
        "nowhere_at_all",
        "numpy",
        "tried_but_needed",
        "yaml",
    ]
    found = {item.module: item for item in bundle.requires}
    assert found["yaml"].distribution == "PyYAML"
    assert found["yaml"].version
    assert found["nowhere_at_all"] == Requirement("nowhere_at_all", "nowhere_at_all", "")


def test_equal_files_are_equal_bytes(write: Write) -> None:
    roots = write(LIBRARY | {"lib/block.py": "from lib.b import B\r\nX = 'ü'  # \x0c\r\n"})
    data = collect({"lib.block", "lib.a"}, roots)
    assert collect({"lib.a", "lib.block"}, roots) == data == encode_bundle(decode_bundle(data))
    assert decode_bundle(data).files["lib/block.py"] == "from lib.b import B\r\nX = 'ü'  # \x0c\r\n"
    changed = write({"lib/a.py": "A = 'changed'\n"})
    assert collect({"lib.block", "lib.a"}, changed) != data
    assert b"tmp" not in data, "where the operator keeps files is nobody's affair"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"lib/block.py": "def f(:"}, r"the source code of lib\.block has a syntax error in line 1"),
        ({"lib/block.py": "from lib import ünder", "lib/ünder.py": ""}, r"does not fit in a bundle: .*ASCII"),
    ],
)
def test_what_makes_no_bundle_is_said(files: dict[str, str], message: str, write: Write) -> None:
    with pytest.raises(NotPortableError, match=message):
        collect({"lib.block"}, write(files))


def test_other_versions_are_warned_about() -> None:
    data = encode_bundle(Bundle(files={"m.py": ""}, requires=(Requirement("numpy", "numpy", "0.0.1"),)))
    with pytest.warns(UserWarning, match=r"the source of a block was built with numpy 0\.0\.1; installed here is"):
        load_source(data, digest_of(data), "a block")


def test_encoding_checks_what_decoding_would() -> None:
    with pytest.raises(FormatError, match="cannot be a file of a bundle"):
        encode_bundle(Bundle(files={"../m.py": ""}))
