"""Recorded results of ``make versions``: one file of JSON for each environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
_WORKS = frozenset({"equal", "close", "random"})


def read_results(leg: str) -> dict[str, Any]:
    """Return the versions and outcomes of an environment."""
    found: dict[str, Any] = json.loads((FOLDER / f"{leg}.json").read_text(encoding="utf-8"))
    return found


def write_results(leg: str, results: Mapping[str, Any]) -> None:
    """Record the versions and outcomes of an environment."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{leg}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def worse(leg: str, found: Mapping[str, Mapping[str, Any]], recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each model that differs, or that is refused and was not.

    Equal and close count alike: which one a result is depends on the processor.
    """
    lines = []
    for task, outcomes in found.items():
        for key, item in outcomes.items():
            before = recorded.get(task, {}).get(key, {}).get("status")
            if item["status"] == "different" or (item["status"] == "refused" and before in _WORKS):
                lines.append(f"{leg}: {key} {task}: {item['status']}: {item['reason']}")
    return lines
