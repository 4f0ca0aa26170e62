"""Trains with clients of other versions against the server of this environment, and compares with a client of its own.

Usage: python tests/versions/run.py [LEG ...] [--write]

Each leg has an environment of its own with the client only. In each one, the models of ``calls.py`` are built by a
server of this environment, trained for a few steps, and saved. The model files of this environment are opened there,
the files of the leg here. Without --write, a result that is worse than the recorded one is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import torch  # noqa: E402  after the path is set

from support.server import running_server  # noqa: E402
from versions.calls import write_calls  # noqa: E402
from versions.compare import outcome  # noqa: E402
from versions.environment import make_environment  # noqa: E402
from versions.legs import LEGS, Leg  # noqa: E402
from versions.results import read_results, worse, write_results  # noqa: E402

CLIENT = Path(__file__).with_name("client.py")
OURS = "server"
"""The environment of this process, which also has the server."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("legs", nargs="*", default=[*LEGS], metavar="LEG", help=f"{', '.join(LEGS)} (default: all)")
    parser.add_argument("--write", action="store_true", help="record the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        failures = compare_legs([LEGS[leg] for leg in arguments.legs], Path(name), is_written=arguments.write)
    for failure in failures:
        print(failure, flush=True)
    sys.exit(1 if failures else 0)


def compare_legs(legs: list[Leg], folder: Path, *, is_written: bool) -> list[str]:
    """Run the clients; return what is worse than recorded, or different at all."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    write_calls(folder)
    failures = []
    with running_server(folder / "store", "--plugin", "versions.plugin") as server:
        run(Path(sys.executable), "train", server.address, folder, folder / OURS)
        for leg in legs:
            python = make_environment(leg)
            started = time.monotonic()
            out = folder / leg.name
            run(python, "train", server.address, folder, out)
            run(python, "open", folder / OURS / "files", folder, folder / f"{leg.name}-opens")
            run(Path(sys.executable), "open", out / "files", folder, folder / f"{leg.name}-opened")
            found = results_of(folder, leg.name)
            counts = {task: _counts(items) for task, items in found["outcomes"].items()}
            print(f"{leg.name}: {time.monotonic() - started:.0f} s; {json.dumps(counts)}", flush=True)
            failures += [f"{leg.name}: {line}: needs a translation" for line in found["attributes"]]
            failures += worse(leg.name, found["outcomes"], {} if is_written else read_results(leg.name)["outcomes"])
            if is_written:
                write_results(leg.name, found)
    return failures


def run(python: Path, task: str, source: object, folder: Path, out: Path) -> None:
    """Run the client with an interpreter; only the environment of this process has packages on ``PYTHONPATH``."""
    environment = dict(os.environ)
    if python != Path(sys.executable):
        environment.pop("PYTHONPATH")
    command = [python, CLIENT, task, source, folder, out]
    subprocess.run([*map(str, command)], check=True, env=environment)


def results_of(folder: Path, leg: str) -> dict[str, Any]:
    """Return the versions of an environment, and the outcome of each model: trained, opened, and opened here."""
    expected = torch.load(folder / OURS / "results.pt", weights_only=True)
    tasks = {"trained": leg, "opened": f"{leg}-opens", "saved": f"{leg}-opened"}
    outcomes = {}
    for task, name in tasks.items():
        found = torch.load(folder / name / "results.pt", weights_only=True)
        refused = json.loads((folder / name / "refused.json").read_text("utf-8"))
        keys = [key for key in expected if task == "trained" or key in found or key in refused]
        outcomes[task] = {key: outcome(found.get(key), expected[key], refused.get(key, "")) for key in keys}
    classes, ours = (json.loads((folder / name / "attributes.json").read_text("utf-8")) for name in (leg, OURS))
    changed = [key for key, attributes in classes.items() if attributes not in (None, ours[key])]
    versions = {name: json.loads((folder / name / "versions.json").read_text("utf-8")) for name in (leg, OURS)}
    return {"client": versions[leg], "server": versions[OURS], "attributes": changed, "outcomes": outcomes}


def _counts(outcomes: dict[str, Any]) -> dict[str, int]:
    statuses = [item["status"] for item in outcomes.values()]
    return {status: statuses.count(status) for status in sorted(set(statuses))}


if __name__ == "__main__":
    main()
