"""Runs a trusted bundle: its files become modules under a private name of its digest. Nothing else here executes code.

Through Python's own import system, with a finder that knows the names of trusted bundles alone: ``sys.path`` is not
touched, and no module of the trainer's is hidden or replaced. ``from pkg import x`` and ``import pkg.y`` inside a
bundle mean the bundle's own ``pkg``; relative imports need nothing.
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

_PREFIX = "_model_factory_source_"
_SHOWN_DIGITS = 12


class TrustedSource:
    """A bundle whose modules can be imported in this process."""

    def __init__(self, bundle: Bundle, digest: str) -> None:
        self.digest = digest
        self.files = bundle.files
        self.modules = bundle.modules
        self.root = f"{_PREFIX}{digest}"
        self.packages = {self.root} | {
            f"{self.root}.{'.'.join(parts[:length])}"
            for parts in (module.split(".") for module in self.modules)
            for length in range(1, len(parts))
        }
        self.packages |= {f"{self.root}.{module}" for module, name in self.modules.items() if is_package(name)}

    def find_class(self, module: str, qualname: str) -> Any:
        """Return a class that a module of the bundle defines; imports the module, which executes it.

        Raises:
            SourceError: the module fails, or defines no such class.
        """
        where = f"the class {qualname!r} of {module!r} in the trusted source {self.digest[:_SHOWN_DIGITS]}"
        if module not in self.modules:
            raise SourceError(f"{where} cannot be found: the bundle has no such module")
        private = f"{self.root}.{module}"
        try:
            found: Any = importlib.import_module(private)
        except (Exception, SystemExit) as error:
            raise SourceError(
                f"{where} cannot be used: its source failed with {type(error).__name__}: {error}"
            ) from error
        for part in qualname.split("."):
            found = vars(found).get(part) if isinstance(found, type | ModuleType) else None
        if not isinstance(found, type) or (found.__module__, found.__qualname__) != (private, qualname):
            raise SourceError(f"{where} cannot be found: that module defines no such class")
        return found


def load_source(data: bytes, digest: str, block: str) -> TrustedSource:
    """Make the modules of a trusted bundle importable; none is imported yet. ``block`` is who needs it, for messages.

    Raises:
        FormatError: it is not a bundle.
        IntegrityError: it is not the bundle of that digest.
        SourceError: it imports a package that is not installed here.
    """
    if digest_of(data) != digest:
        raise IntegrityError(f"the source of {block} is not what its digest {digest} says")
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


def _check_requirements(bundle: Bundle, block: str) -> None:
    for item in bundle.requires:
        if item.module not in sys.modules and importlib.util.find_spec(item.module) is None:
            wanted = f"{item.distribution}=={item.version}" if item.version else item.distribution
            raise SourceError(
                f"the source of {block} imports {item.module!r}, which is not installed here. Remedy: pip install "
                f"'{wanted}', or have the block's forward written so that it needs no source (docs/portability.md)"
            )
        try:
            here = metadata.version(item.distribution)
        except metadata.PackageNotFoundError:
            continue
        if item.version and here != item.version:
            warnings.warn(
                f"the source of {block} was built with {item.distribution} {item.version}; here it runs with {here}",
                stacklevel=2,
            )


class _Finder(MetaPathFinder):
    """Finds modules of trusted bundles, and nothing else."""

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
    """Executes one file of a bundle as a module; a package without a file of its own is empty."""

    def __init__(self, source: TrustedSource, module: str) -> None:
        self._source = source
        name = source.modules.get(module)
        self.text = None if name is None else source.files[name]
        self.origin = f"<model-factory {source.digest[:_SHOWN_DIGITS]}>/{name or module}"

    def is_package(self, fullname: str) -> bool:
        """Whether it has modules inside."""
        return fullname in self._source.packages

    def get_source(self, _fullname: str) -> str:
        """Return the text, for tracebacks and ``inspect``."""
        return self.text or ""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the text, with absolute imports of the bundle's own modules led to them."""
        text = self.get_source(fullname)
        # Without a time of change the entry is never checked against a disk, where there is no such file.
        linecache.cache[self.origin] = (len(text), None, text.splitlines(keepends=True), self.origin)
        tree = _OwnImports(self._source).visit(ast.parse(text, self.origin))
        return compile(ast.fix_missing_locations(tree), self.origin, "exec", dont_inherit=True)


class _OwnImports(ast.NodeTransformer):
    """Leads absolute imports of a bundle's own modules to their private names."""

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
