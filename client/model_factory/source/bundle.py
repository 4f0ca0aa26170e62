"""Bundles: the files of an operator's that the classes of source modules need, as one document of plain text.

Canonical JSON, so that equal files are equal bytes and one digest::

    {"format": 1, "files": {"pkg/blocks.py": "import torch..."}, "requires": [["einops", "einops", "0.8.1"]]}

Names have the form of a module's place in its package and are never paths: nothing of a bundle is written to a disk.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass

from model_factory.digest import digest_of
from model_factory.documents import SOURCE_FORMAT, decode_document, encode_document
from model_factory.errors import FormatError
from model_factory.limits import MAX_SOURCE_BYTES, MAX_SOURCE_FILE_BYTES, MAX_SOURCE_FILES, MAX_SOURCE_NAME_BYTES

_NAME = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*/)*[A-Za-z_][A-Za-z0-9_]*\.py")
_PACKAGE = "__init__"


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package of someone else's that the files import."""

    module: str
    """What is imported: ``yaml``."""
    distribution: str
    """What is installed for it: ``PyYAML``; the module's name where the server did not know."""
    version: str
    """On the server; empty where it did not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Files and what they need besides torch and Python itself."""

    files: Mapping[str, str]
    """Text by name: ``pkg/blocks.py``, ``pkg/__init__.py``."""
    requires: tuple[Requirement, ...] = ()
    """Sorted by module."""

    @property
    def modules(self) -> dict[str, str]:
        """Name of each file by the name of the module that it is."""
        return {module_name(name): name for name in self.files}

    @property
    def file_digests(self) -> dict[str, str]:
        """Digest of each file's text by name."""
        return {name: digest_of(text.encode()) for name, text in sorted(self.files.items())}


def module_name(file_name: str) -> str:
    """The module that a file of a bundle is: ``pkg.blocks`` of ``pkg/blocks.py``, ``pkg`` of ``pkg/__init__.py``."""
    return file_name.removesuffix(".py").removesuffix(f"/{_PACKAGE}").replace("/", ".")


def file_name(module: str, *, package: bool) -> str:
    """The name of a module's file in a bundle."""
    return f"{module.replace('.', '/')}{f'/{_PACKAGE}' if package else ''}.py"


def is_package(name: str) -> bool:
    """Whether a file is a package's own."""
    return name.endswith(f"/{_PACKAGE}.py")


def encode_bundle(bundle: Bundle) -> bytes:
    """Return a bundle's canonical bytes.

    Raises:
        FormatError: it breaks a rule on names or a limit.
    """
    _check(bundle)
    requires = [[item.module, item.distribution, item.version] for item in bundle.requires]
    return encode_document({"format": SOURCE_FORMAT, "files": dict(bundle.files), "requires": requires})


def decode_bundle(data: bytes) -> Bundle:
    """Parse and check a bundle; nothing of it is compiled.

    Raises:
        FormatError: it breaks the format, a rule on names or a limit.
    """
    if len(data) > MAX_SOURCE_BYTES:
        raise FormatError(f"a bundle has {len(data)} bytes; at most {MAX_SOURCE_BYTES} are allowed")
    document = decode_document(data, "the bundle")
    if not isinstance(document, dict) or document.keys() != {"format", "files", "requires"}:
        raise FormatError("a bundle has exactly the keys files, format, requires")
    if document["format"] != SOURCE_FORMAT or not isinstance(document["files"], dict):
        raise FormatError(f"a bundle has format {SOURCE_FORMAT} and a mapping of files")
    bundle = Bundle(files=document["files"], requires=_requirements(document["requires"]))
    _check(bundle)
    return bundle


def _requirements(data: object) -> tuple[Requirement, ...]:
    if not isinstance(data, list) or len(data) > MAX_SOURCE_FILES:
        raise FormatError(f"the requirements of a bundle are a list of at most {MAX_SOURCE_FILES}")
    for item in data:
        if not (isinstance(item, list) and len(item) == 3 and all(isinstance(text, str) for text in item)):
            raise FormatError(f"{str(item)[:80]!r} is not a requirement: module, distribution, version")
        if not item[0].isidentifier() or max(map(len, item)) > MAX_SOURCE_NAME_BYTES:
            raise FormatError(f"{item[0][:80]!r} is not the name of a top-level module")
    return tuple(Requirement(*item) for item in data)


def _check(bundle: Bundle) -> None:
    if not 0 < len(bundle.files) <= MAX_SOURCE_FILES:
        raise FormatError(f"a bundle has 1 to {MAX_SOURCE_FILES} files, got {len(bundle.files)}")
    for name, text in bundle.files.items():
        _check_name(name)
        if not isinstance(text, str):
            raise FormatError(f"the file {name!r} of a bundle is a {type(text).__name__}, not a text")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise FormatError(f"the file {name!r} of a bundle is not UTF-8") from None
        if size > MAX_SOURCE_FILE_BYTES or "\0" in text:
            raise FormatError(f"the file {name!r} of a bundle has over {MAX_SOURCE_FILE_BYTES} bytes, or a NUL")
    _check_places(bundle)


def _check_name(name: str) -> None:
    if len(name) > MAX_SOURCE_NAME_BYTES or not _NAME.fullmatch(name):
        raise FormatError(
            f"{name[:80]!r} cannot be a file of a bundle; allowed are ASCII names as modules have: pkg/blocks.py"
        )
    if any(keyword.iskeyword(part) for part in name.removesuffix(".py").split("/")):
        raise FormatError(f"{name!r} cannot be a file of a bundle: a part of it is a word of Python's")


def _check_places(bundle: Bundle) -> None:
    """Refuse two files for one module, names that differ in case alone, and modules inside what is no package."""
    seen: dict[str, str] = {}
    for name in bundle.files:
        module = module_name(name)
        other = seen.setdefault(module.casefold(), name)
        if other != name:
            raise FormatError(f"the files {other!r} and {name!r} of a bundle are the same module")
    plain = {module_name(name) for name in bundle.files if not is_package(name)}
    for module in seen.values():
        parts = module_name(module).split(".")
        for length in range(1, len(parts)):
            if ".".join(parts[:length]) in plain:
                raise FormatError(f"the file {module!r} of a bundle is inside a module that is no package")
