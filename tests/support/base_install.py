"""A site folder with the packages of ``pip install model-factory`` only.

A virtual environment of its own would say the same, but installing torch into one takes minutes.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import model_factory

CLIENT = "model-factory"


def make_site(folder: Path, *roots: str) -> Path:
    """Link the client and all requirements, direct and indirect, into a folder; return the folder.

    With ``roots``, link these distributions in the place of the client.
    """
    folder.mkdir()
    links: dict[str, Path] = {} if roots else {"model_factory": Path(model_factory.__file__).parent}
    shared: dict[str, list[Path]] = {}
    names = {name for root in roots or (CLIENT,) for name in requirements(root)}
    distributions = [metadata.distribution(name) for name in sorted(names)]
    for distribution in distributions:
        for top in _tops(distribution):
            shared.setdefault(top.name, []).append(top)
    for top, places in shared.items():
        if len(places) == 1 and top != "google":  # a namespace that others install into, too
            links.setdefault(top, places[0])
            continue
        owned = _children(top, distributions)
        links |= {f"{top}/{child.name}": child for place in places for child in place.iterdir() if child.name in owned}
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(target)
    return folder


def requirements(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """Return a distribution and all installed requirements without extras."""
    found = {name}
    for line in metadata.requires(name) or ():
        required = re.match(r"[A-Za-z0-9._-]+", line)
        assert required is not None
        child = re.sub(r"[-_.]+", "-", required.group()).lower()
        if "extra ==" in line or child in seen | found:
            continue
        try:
            metadata.distribution(child)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        found |= requirements(child, seen | found)
    return found


def _tops(distribution: metadata.Distribution) -> set[Path]:
    """Return the top-level folders and files of a distribution in site-packages."""
    tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    return {Path(str(distribution.locate_file(top))) for top in tops if not top.endswith(".pth")}


def _children(namespace: str, distributions: list[metadata.Distribution]) -> set[str]:
    """Return the packages of these distributions in a namespace."""
    files = [file.parts for distribution in distributions for file in distribution.files or ()]
    return {parts[1] for parts in files if len(parts) > 1 and parts[0] == namespace} - {"__pycache__"}
