"""Checks the form of the source: the share of pronouns in docstrings, and the sizes of modules, functions and packages.

Usage: python scripts/plain_words.py [PATH ...]. Without paths: both packages, each of which has to pass. With paths:
the share of each file, the largest last, for work on these files.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (ROOT / "client" / "model_factory", ROOT / "server" / "model_factory_server")
PRONOUNS = frozenset("it they those that what which who so such none one".split())

MAX_SHARE = 0.04
"""Pronouns among the words of all docstrings of a package."""

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_PACKAGE_FILES = 12

_CODE = re.compile(r"``[^`]*``|`[^`]*`|^\s*(?:>>>|\.\.\.) .*$", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def main() -> int:
    """Run the command; return 1 if something is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders to look at; by default both packages")
    paths = parser.parse_args().paths
    if paths:
        for share, path in sorted((_share([path]), path) for place in paths for path in _modules(place)):
            print(f"{share:6.1%}  {path}")
        return 0
    faults = [fault for package in PACKAGES for fault in _faults(package)]
    print("\n".join(faults) or "docstrings, modules, functions and packages are within their bounds")
    return bool(faults)


def _faults(package: Path) -> Iterator[str]:
    modules = _modules(package)
    share = _share(modules)
    print(f"{package.name}: {share:.1%} of the words in docstrings are pronouns; at most {MAX_SHARE:.0%}")
    if share > MAX_SHARE:
        yield f"{package.name}: too many pronouns in docstrings; see python scripts/plain_words.py PATH"
    for folder in {path.parent for path in modules}:
        files = len(list(folder.glob("*.py")))
        if files > MAX_PACKAGE_FILES and folder.name != "v1":
            yield f"{folder.relative_to(ROOT)}: {files} files; at most {MAX_PACKAGE_FILES} in one package"
    for path in modules:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_MODULE_LINES:
            yield f"{path.relative_to(ROOT)}: {lines} lines; at most {MAX_MODULE_LINES}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > MAX_FUNCTION_LINES:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {size} lines; at most {MAX_FUNCTION_LINES}"


def _modules(place: Path) -> list[Path]:
    return sorted(path for path in ([place] if place.is_file() else place.rglob("*.py")) if "_pb2" not in path.name)


def _share(modules: list[Path]) -> float:
    words = [word.lower() for path in modules for text in _docstrings(path) for word in _words(text)]
    return sum(word in PRONOUNS for word in words) / max(1, len(words))


def _words(text: str) -> list[str]:
    return _WORD.findall(_CODE.sub(" ", text))


def _docstrings(path: Path) -> Iterator[str]:
    """Yield every string that stands alone as a statement: docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


if __name__ == "__main__":
    sys.exit(main())
