"""The project has a licence, its packages say so, and what they depend on may be used with it."""

from __future__ import annotations

import hashlib
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt."""
PERMISSIVE = re.compile(r"Apache|BSD|MIT|MPL-2\.0|CC0")
PACKAGES = ("", "server")


def project(folder: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def requirements() -> list[str]:
    """Names of the packages that trainers and servers install; not those of developers."""
    names = {re.split(r"[^\w-]", item)[0] for folder in PACKAGES for item in project(folder)["dependencies"]}
    return sorted(names - {"model-factory"})


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_licence_is_apache_2_0_to_the_letter(folder: str) -> None:
    assert hashlib.sha256((ROOT / folder / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0
    assert project(folder)["license"] == "Apache-2.0"
    assert project(folder)["license-files"] == ["LICENSE"]


@pytest.mark.parametrize("name", requirements())
def test_dependencies_have_a_permissive_licence(name: str) -> None:
    fields = metadata.metadata(name)
    classifiers = [item for item in fields.get_all("Classifier") or [] if item.startswith("License")]
    stated = " ".join([fields.get("License-Expression") or "", fields.get("License") or "", *classifiers])
    assert PERMISSIVE.search(stated), stated
    assert not re.search(r"\bA?L?GPL", stated), stated
