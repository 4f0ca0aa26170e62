"""Bundles the operator's files that given classes need: found by reading import statements, never by running anything.

Not ``torch.package``: it finds what a *pickled object* needs and writes that pickle beside the files, wants every
third-party module to be named in advance, and its importer unpickles and replaces ``__import__``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from model_factory.errors import FormatError, NotPortableError
from model_factory.limits import MAX_SOURCE_FILES
from model_factory.source.bundle import Bundle, Requirement, encode_bundle, file_name

_PROVIDED = frozenset({*sys.stdlib_module_names, "torch", "model_factory"})
_IMPORT_ERRORS = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


@dataclass(frozen=True, slots=True)
class Root:
    """A folder from which the operator's code is imported."""

    folder: Path
    """As on ``sys.path``."""
    tops: frozenset[str] | None = None
    """The top-level modules in it that are the operator's; None: all."""


@dataclass(frozen=True, slots=True)
class _Import:
    module: str
    """Absolute name."""
    names: tuple[str, ...]
    """What is taken from it; nothing for ``import a.b``, ``("",)`` for ``import a.b as c``."""
    optional: bool
    """Whether the file does without it."""


def find_file(module: str, roots: Sequence[Root]) -> Path | None:
    """Return the file of the operator's that a module is, or None if it is not the operator's."""
    top, *rest = module.split(".")
    for root in roots:
        if root.tops is not None and top not in root.tops:
            continue
        place = root.folder.joinpath(top, *rest)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
    return None


def collect(modules: Collection[str], roots: Sequence[Root]) -> bytes:
    """Return the bundle of ``modules`` and of what they import of the operator's, and so on.

    A package's own file is in it where something is taken from it by name; where only modules inside it are imported,
    the package is empty on the trainer, and what its file would import is not needed there.

    Raises:
        NotPortableError: they make no bundle; the message says which file and why.
    """
    files: dict[str, str] = {}
    third: dict[str, bool] = {}
    pending = sorted(modules)
    seen = set(pending)
    while pending:
        module = pending.pop()
        path = find_file(module, roots)
        assert path is not None
        text = _read(path, module)
        files[file_name(module, package=path.name == "__init__.py")] = text
        if len(files) > MAX_SOURCE_FILES:
            raise NotPortableError(f"its source imports more than {MAX_SOURCE_FILES} of the operator's files")
        for item in _imports(text, module, path):
            own = set(_own_modules(item, roots))
            pending.extend(sorted(own - seen))
            seen |= own
            top = item.module.partition(".")[0]
            if not own and top not in _PROVIDED and find_file(top, roots) is None and not _is_own_top(top, roots):
                third[top] = third.get(top, True) and item.optional
    needed = sorted(top for top, optional in third.items() if not optional)
    distributions = metadata.packages_distributions() if needed else {}  # reads what is installed, all of it
    requires = tuple(_requirement(top, distributions) for top in needed)
    try:
        return encode_bundle(Bundle(files=files, requires=requires))
    except FormatError as error:
        raise NotPortableError(f"its source makes no bundle: {error}") from None


def _is_own_top(top: str, roots: Sequence[Root]) -> bool:
    """Whether a name is a folder of the operator's without a file of its own: a namespace package."""
    return any((root.tops is None or top in root.tops) and (root.folder / top).is_dir() for root in roots)


def _own_modules(item: _Import, roots: Sequence[Root]) -> Iterator[str]:
    """The operator's modules whose files an import needs."""
    if not item.names:  # import a.b.c: binds a, and a.b and a.b.c are reached through it
        parts = item.module.split(".")
        for length in range(1, len(parts) + 1):
            module = ".".join(parts[:length])
            if find_file(module, roots) is not None:
                yield module
        return
    path = find_file(item.module, roots)
    for name in item.names:
        inside = f"{item.module}.{name}"
        if name and find_file(inside, roots) is not None and (path is None or name not in _bound_names(path)):
            yield inside
        elif path is not None:
            yield item.module


def _imports(text: str, module: str, path: Path) -> Iterator[_Import]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise NotPortableError(f"the source of {module} cannot be read: {error.msg}, line {error.lineno}") from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    yield from _imports_below(tree, package, optional=False)


def _imports_below(node: ast.AST, package: str, *, optional: bool) -> Iterator[_Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            # With `as`, the leaf alone is bound; its packages are imported on the way, without being asked for names.
            yield _Import(alias.name, ("",) if alias.asname else (), optional)
    elif isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        yield _Import(module, tuple(alias.name for alias in node.names), optional)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        yield from _imports_of(node.orelse, package, optional=optional)
    elif isinstance(node, ast.Try):
        guarded = any(_catches_import_errors(handler) for handler in node.handlers)
        yield from _imports_of(ast.iter_child_nodes(node), package, optional=optional or guarded)
    else:
        yield from _imports_of(ast.iter_child_nodes(node), package, optional=optional)


def _imports_of(nodes: Iterable[ast.AST], package: str, *, optional: bool) -> Iterator[_Import]:
    for node in nodes:
        yield from _imports_below(node, package, optional=optional)


def _catches_import_errors(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(isinstance(node, ast.Name) and node.id in _IMPORT_ERRORS for node in ast.walk(handler.type))


@cache
def _bound_names(path: Path) -> frozenset[str]:
    """What a package's own file gives names to at its top level, beside the modules inside the package."""
    names: set[str] = set()
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        else:
            stored = (item for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store))
            names |= {item.id for item in stored}
    return frozenset(names)


def _read(path: Path, module: str) -> str:
    try:
        return path.read_bytes().decode()  # as bytes, so that line ends stay what they are
    except UnicodeDecodeError:
        raise NotPortableError(f"the source of {module} is not UTF-8") from None


def _requirement(top: str, distributions: Mapping[str, list[str]]) -> Requirement:
    for distribution in distributions.get(top, ()):
        return Requirement(top, distribution, metadata.version(distribution))
    return Requirement(top, top, "")
