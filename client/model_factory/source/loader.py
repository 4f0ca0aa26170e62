"""Runs a trusted bundle: the files become modules under a private name. No other module of the package executes code.

The loader uses Python's import system, with a finder for the names of trusted bundles only: ``sys.path`` is unchanged,
and no module of the trainer is hidden or replaced. ``from pkg import x`` and ``import pkg.y`` inside a bundle import
the bundle's ``pkg``; relative imports work unchanged.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import linecache
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib import metadata
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from model_factory.digest import digest_of
from model_factory.errors import IntegrityError, SourceError
from model_factory.source.bundle import Bundle, decode_bundle, is_package
from model_factory.wording import printable

_PREFIX = "_model_factory_source_"
_SHOWN_DIGITS = 12


class TrustedSource:
    """A bundle with modules that this process can import."""

    def __init__(self, bundle: Bundle, digest: str) -> None:
        self.digest = digest
        self.bundle = bundle
        self.reasons: dict[tuple[str, str], str] = {}
        """Reason for the source of each class found, by module and qualified name; for display."""
        self.files = bundle.files
        self.modules = bundle.modules
        self.root = f"{_PREFIX}{digest}"
        self.packages = {self.root} | {
            f"{self.root}.{'.'.join(parts[:length])}"
            for parts in (module.split(".") for module in self.modules)
            for length in range(1, len(parts))
        }
        self.packages |= {f"{self.root}.{module}" for module, name in self.modules.items() if is_package(name)}

    def find_class(self, module: str, qualname: str, reason: str = "") -> Any:
        """Return a class defined by a module of the bundle; imports the module, and so runs the code.

        ``reason`` is the reason for the source of the class, to be kept.

        Raises:
            SourceError: the module fails, or does not define the class.
        """
        where = f"the class {qualname!r} of {module!r} in the trusted source {self.digest[:_SHOWN_DIGITS]}"
        if module not in self.modules:
            raise SourceError(f"{where} cannot be found: the bundle has no module {module!r}")
        private = f"{self.root}.{module}"
        try:
            found: Any = importlib.import_module(private)
        except (Exception, SystemExit) as error:
            raise SourceError(
                f"{where} cannot be used: the source failed with {type(error).__name__}: {error}"
            ) from error
        for part in qualname.split("."):
            found = vars(found).get(part) if isinstance(found, type | ModuleType) else None
        if not isinstance(found, type) or (found.__module__, found.__qualname__) != (private, qualname):
            raise SourceError(f"{where} cannot be found: the module does not define the class")
        self.reasons[module, qualname] = reason
        return found


def load_source(data: bytes, digest: str, block: str) -> TrustedSource:
    """Make the modules of a trusted bundle importable, without an import. Error messages name ``block``.

    Raises:
        FormatError: the bundle is malformed.
        IntegrityError: the bundle has another digest.
        SourceError: the bundle imports a package that is not installed here.
    """
    if digest_of(data) != digest:
        raise IntegrityError(f"the source of {block} does not match the digest {digest}")
    with _LOCK:
        source = _FINDER.sources.get(f"{_PREFIX}{digest}")
        if source is None:
            bundle = decode_bundle(data)
            _check_requirements(bundle, block)
            source = TrustedSource(bundle, digest)
            _FINDER.sources[source.root] = source
            if _FINDER not in sys.meta_path:
                sys.meta_path.append(_FINDER)
    return source


def source_of(cls: type) -> tuple[TrustedSource, str] | None:
    """Return the trusted source that defines a class, and the name of the module in the source; None for other classes.

    Example:
        >>> source_of(int) is None
        True
    """
    root, _, module = cls.__module__.partition(".")
    source = _FINDER.sources.get(root)
    return None if source is None else (source, module)


def _check_requirements(bundle: Bundle, block: str) -> None:
    for item in bundle.requires:
        if item.module not in sys.modules and importlib.util.find_spec(item.module) is None:
            wanted = f"{item.distribution}=={item.version}" if item.version else item.distribution
            raise SourceError(
                f"the source of {block} imports {item.module!r}, which is not installed here. Remedy: pip install "
                f"'{wanted}', or change the block's forward to need no source code (docs/portability.md)"
            )
        try:
            here = metadata.version(item.distribution)
        except metadata.PackageNotFoundError:
            continue
        if item.version and here != item.version:
            built_with = printable(f"the source of {block} was built with {item.distribution} {item.version}")
            warnings.warn(f"{built_with}; installed here is {here}", stacklevel=2)


class _Finder(MetaPathFinder):
    """Finds modules of trusted bundles only."""

    def __init__(self) -> None:
        self.sources: dict[str, TrustedSource] = {}

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, module = fullname.partition(".")
        source = self.sources.get(root)
        if source is None or not (module in source.modules or fullname in source.packages):
            return None
        package = fullname in source.packages
        loader = _Loader(source, module)
        spec = ModuleSpec(fullname, loader, origin=loader.origin, is_package=package)
        spec.has_location = loader.text is not None
        return spec


class _Loader(InspectLoader):
    """Executes a file of a bundle as a module; a package without ``__init__.py`` is empty."""

    def __init__(self, source: TrustedSource, module: str) -> None:
        self._source = source
        name = source.modules.get(module)
        self.text = None if name is None else source.files[name]
        self.origin = f"<model-factory {source.digest[:_SHOWN_DIGITS]}>/{name or module}"

    def is_package(self, fullname: str) -> bool:
        """Whether the module is a package."""
        return fullname in self._source.packages

    def get_source(self, _fullname: str) -> str:
        """Return the text, for tracebacks and ``inspect``."""
        return self.text or ""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the text; absolute imports of the bundle's own modules are redirected to the private names."""
        text = self.get_source(fullname)
        # Without a modification time, linecache never looks for the file on disk.
        linecache.cache[self.origin] = (len(text), None, text.splitlines(keepends=True), self.origin)
        tree = _RedirectImports(self._source).visit(ast.parse(text, self.origin))
        return compile(ast.fix_missing_locations(tree), self.origin, "exec", dont_inherit=True)


class _RedirectImports(ast.NodeTransformer):
    """Redirects absolute imports of a bundle's own modules to the private names."""

    def __init__(self, source: TrustedSource) -> None:
        self._root = source.root
        self._own = {module.partition(".")[0] for module in source.modules}

    def _is_own(self, name: str) -> bool:
        return name.partition(".")[0] in self._own

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.level == 0 and node.module is not None and self._is_own(node.module):
            node.module = f"{self._root}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        statements: list[ast.stmt] = []
        for alias in node.names:
            if not self._is_own(alias.name):
                statements.append(ast.Import([alias]))
                continue
            top = alias.name.partition(".")[0]
            statements.append(ast.Import([ast.alias(f"{self._root}.{alias.name}", alias.asname or top)]))
            if alias.asname is None:  # `import a.b` binds `a`
                statements.append(ast.ImportFrom(self._root, [ast.alias(top)], 0))
        return [ast.copy_location(statement, node) for statement in statements]


_FINDER = _Finder()
_LOCK = threading.Lock()
