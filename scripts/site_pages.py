"""A hook of MkDocs: pages of the repository's root join the site, and links between both places work.

In the repository README.md links to ``docs/operations.md``, and docs/operations.md links to ``../CONTRIBUTING.md``. The
site has all pages in one tree, so the prefixes are removed. A link to anything else outside ``docs/`` (a folder of
examples) becomes plain text, since the site has no such page.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
"""Page in the repository's root -> page of the site."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point each link at the page of the site; a link to a place outside the site becomes plain text."""
    on_site = page.file.src_uri
    in_root = {page: name for name, page in ROOT_PAGES.items()}
    source = in_root.get(on_site, f"docs/{on_site}")

    def target_of(match: re.Match[str]) -> str:
        image, text, link, anchor = match.groups("")
        target = normpath(PurePosixPath(source).parent / link)
        if target in ROOT_PAGES:
            place = ROOT_PAGES[target]
        elif target.startswith("docs/") and "." in PurePosixPath(target).name:
            place = target.removeprefix("docs/")
        else:
            return text
        depth = on_site.count("/")
        return f"{image}[{text}]({'../' * depth}{place}{anchor})"

    return _LINK.sub(target_of, markdown)
