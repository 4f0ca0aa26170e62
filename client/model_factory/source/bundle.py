"""Bundles: the source files needed by the classes of source modules, as a document of plain text.

Canonical JSON, so equal files have equal bytes and an equal digest::

    {"format": 1, "files": {"pkg/blocks.py": "import torch..."}, "requires": [["einops", "einops", "0.8.1"]]}

Names look like the place of a module in a package, and are never used as paths: no file of a bundle is written to disk.
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
    """A package of another distribution, imported by the files."""

    module: str
    """Name in the import, for example ``yaml``."""
    distribution: str
    """Name for pip, for example ``PyYAML``; the module's name if unknown to the server."""
    version: str
    """Version on the server; empty if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Files, and required packages besides torch and Python's standard library.

    >>> bundle = Bundle(files={"pkg/blocks.py": "import torch"})
    >>> bundle.modules
    {'pkg.blocks': 'pkg/blocks.py'}
    >>> decode_bundle(encode_bundle(bundle)) == bundle
    True
    """

    files: Mapping[str, str]
    """Texts by name, for example ``pkg/blocks.py`` or ``pkg/__init__.py``."""
    requires: tuple[Requirement, ...] = ()
    """Sorted by module."""

    @property
    def modules(self) -> dict[str, str]:
        """File names by module name."""
        return {module_name(name): name for name in self.files}

    @property
    def file_digests(self) -> dict[str, str]:
        """Digests of the texts by file name."""
        return {name: digest_of(text.encode()) for name, text in sorted(self.files.items())}


def module_name(file_name: str) -> str:
    """Return the module name of a file.

    >>> module_name("pkg/blocks.py"), module_name("pkg/__init__.py")
    ('pkg.blocks', 'pkg')
    """
    return file_name.removesuffix(".py").removesuffix(f"/{_PACKAGE}").replace("/", ".")


def file_name(module: str, *, package: bool) -> str:
    """Return the file name of a module.

    >>> file_name("pkg.blocks", package=False), file_name("pkg", package=True)
    ('pkg/blocks.py', 'pkg/__init__.py')
    """
    return f"{module.replace('.', '/')}{f'/{_PACKAGE}' if package else ''}.py"


def is_package(name: str) -> bool:
    """Whether a file is the ``__init__.py`` of a package."""
    return name.endswith(f"/{_PACKAGE}.py")


def encode_bundle(bundle: Bundle) -> bytes:
    """Return the canonical bytes of a bundle.

    Raises:
        FormatError: the bundle breaks a rule for names or a limit.
    """
    _check(bundle)
    requires = [[item.module, item.distribution, item.version] for item in bundle.requires]
    return encode_document({"format": SOURCE_FORMAT, "files": dict(bundle.files), "requires": requires})


def decode_bundle(data: bytes) -> Bundle:
    """Parse and check a bundle; no code is compiled.

    Raises:
        FormatError: the bundle breaks the format, a rule for names or a limit.
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
            raise FormatError(f"the file {name!r} of a bundle is of type {type(text).__name__}, expected str")
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
            f"{name[:80]!r} cannot be a file of a bundle; allowed are ASCII names of modules, for example pkg/blocks.py"
        )
    if any(keyword.iskeyword(part) for part in name.removesuffix(".py").split("/")):
        raise FormatError(f"{name!r} cannot be a file of a bundle: a part of the name is a keyword of Python")


def _check_places(bundle: Bundle) -> None:
    """Refuse two files for a module, names that differ in case only, and modules inside a plain module."""
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
                raise FormatError(f"the file {module!r} of a bundle is inside a module that is not a package")
