"""Bundles the operator's files that given classes need. Files are found from import statements; no code is run.

``torch.package`` is not used. ``torch.package`` starts from a pickled object and writes the pickle beside the files,
needs a list of all third-party modules, unpickles on import, and replaces ``__import__``.
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
    """A folder with the operator's code."""

    folder: Path
    """The folder, as in ``sys.path``."""
    tops: frozenset[str] | None = None
    """The operator's top-level modules in the folder; ``None`` for all."""


@dataclass(frozen=True, slots=True)
class _Import:
    module: str
    """Absolute name."""
    names: tuple[str, ...]
    """The imported names; empty for ``import a.b``, ``("",)`` for ``import a.b as c``."""
    optional: bool
    """Whether the importing file handles an ImportError."""


def find_file(module: str, roots: Sequence[Root]) -> Path | None:
    """Return the operator's file of a module, or ``None`` if the module is not the operator's.

    Example:
        >>> find_file("torch.nn", [Root(Path("/srv/models"))]) is None
        True
    """
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
    """Return the bundle of ``modules`` and of all the operator's modules that they import, directly or not.

    The bundle contains the ``__init__.py`` of a package if a name is imported from the package. If only modules inside
    the package are imported, the package is empty on the trainer, and needs no imports of the ``__init__.py``.

    Raises:
        NotPortableError: a file cannot be read, or the bundle is too large; the message names the file.
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
            raise NotPortableError(
                f"the source code imports more than {MAX_SOURCE_FILES} of the operator's files. Remedy: import fewer"
            )
        for item in _imports(text, module, path):
            own = set(_own_modules(item, roots))
            pending.extend(sorted(own - seen))
            seen |= own
            top = item.module.partition(".")[0]
            if not own and top not in _PROVIDED and find_file(top, roots) is None and not _is_own_top(top, roots):
                third[top] = third.get(top, True) and item.optional
    needed = sorted(top for top, optional in third.items() if not optional)
    distributions = metadata.packages_distributions() if needed else {}  # slow: reads every package's metadata
    requires = tuple(_requirement(top, distributions) for top in needed)
    try:
        return encode_bundle(Bundle(files=files, requires=requires))
    except FormatError as error:
        raise NotPortableError(f"the source code does not fit in a bundle: {error}") from None


def _is_own_top(top: str, roots: Sequence[Root]) -> bool:
    """Whether a name is the operator's namespace package, a folder without ``__init__.py``."""
    return any((root.tops is None or top in root.tops) and (root.folder / top).is_dir() for root in roots)


def _own_modules(item: _Import, roots: Sequence[Root]) -> Iterator[str]:
    """The operator's modules with files that an import needs."""
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
        raise NotPortableError(
            f"the source code of {module} has a syntax error in line {error.lineno}: {error.msg}"
        ) from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    yield from _imports_below(tree, package, optional=False)


def _imports_below(node: ast.AST, package: str, *, optional: bool) -> Iterator[_Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            # With `as`, only the last module is bound; no name is taken from its packages.
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
    """The names that a package's ``__init__.py`` binds at its top level."""
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
        return path.read_bytes().decode()  # as bytes, to keep line ends
    except UnicodeDecodeError:
        raise NotPortableError(f"the source code of {module} is not UTF-8. Remedy: save the file as UTF-8") from None


def _requirement(top: str, distributions: Mapping[str, list[str]]) -> Requirement:
    for distribution in distributions.get(top, ()):
        return Requirement(top, distribution, metadata.version(distribution))
    return Requirement(top, top, "")
