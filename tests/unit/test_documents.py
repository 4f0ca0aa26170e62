"""Links, anchors, paths and ``make`` targets in documents exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".github", "benchmarks", "client", "docker", "docs", "examples", "proto", "scripts", "server", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
SHORTENED = (ROOT, ROOT / "tests", ROOT / "client" / "model_factory", ROOT / "server" / "model_factory_server")

_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?!\w+:)([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_MAKE = re.compile(r"\bmake ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)*)")
_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def looks_like_a_path(text: str) -> bool:
    """Return whether the first part of a path is a folder below the root or below a folder in ``SHORTENED``."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", text):
        return False
    return any((folder / text.split("/", maxsplit=1)[0]).is_dir() for folder in SHORTENED)


def dead_paths(page: Path) -> list[str]:
    """Return the paths without a file below the root or below a folder in ``SHORTENED``."""
    found = _CODE.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    return [
        text for text in found if looks_like_a_path(text) and not any((folder / text).exists() for folder in SHORTENED)
    ]


def unknown_targets(text: str) -> list[str]:
    """Return the names after ``make``, in code, without a target in the Makefile."""
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    code = [*_CODE.findall(text), *re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    named = [name for piece in code for found in _MAKE.findall(re.sub(r"#.*", "", piece)) for name in found.split()]
    return [name for name in named if name not in targets]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert dead_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_exists(page: Path) -> None:
    assert dead_paths(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_exists(page: Path) -> None:
    assert unknown_targets(page.read_text(encoding="utf-8")) == []


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    names = sorted(path.name for path in folder.glob("0*.md"))
    assert re.findall(r"^\| \[\d{4}\]\((.*?)\)", index, re.MULTILINE) == names
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
    for name in names:
        text = (folder / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {name[:4]} "), name
        parts = ("**Context.**", "**Decision.**", "**Rejected.**", "**Consequences.**")
        assert [part for part in parts if part not in text] == [], name


def test_a_wrong_name_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A b\n[x](#a-b) [y](#no) [z](no.md) `client/no.py` `contract/no.py` `make test` `make no-such`\n",
        encoding="utf-8",
    )
    assert dead_links(page) == ["#no", "no.md"]
    assert dead_paths(page) == ["client/no.py", "contract/no.py"]
    assert unknown_targets(page.read_text(encoding="utf-8")) == ["no-such"]
