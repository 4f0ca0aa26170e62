"""Files of results, one line of JSON for each model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.jsonl"
"""Results of the models in this process."""
REMOTE = Path(__file__).parent / "remote.jsonl"
"""Results of the models over the wire."""


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Return the result of each model, by name; a later line is in the place of an earlier one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {item["name"]: item for item in map(json.loads, lines)}


def add_result(path: Path, result: dict[str, Any]) -> None:
    """Add the result of a model, in the place of an earlier one."""
    results = read_results(path) | {result["name"]: result}
    path.write_text("".join(f"{json.dumps(item)}\n" for item in results.values()), encoding="utf-8")
