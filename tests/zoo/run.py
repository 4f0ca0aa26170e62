"""Runs the zoo: every model in a process of its own, one line of JSON for each model. ``make zoo`` is the command.

Usage: python tests/zoo/run.py [PATTERN ...] [--results FILE] [--no-export] [--again]

A pattern is a name with wildcards, for example ``timm/*``. Models with a line in the results are left out, so a run can
be continued; with ``--again`` their lines are replaced.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import multiprocessing
import os
import resource
import sys
import time
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import torch  # noqa: E402  after the path is set

from zoo.examine import examine  # noqa: E402
from zoo.libraries import LIBRARIES, models_of  # noqa: E402
from zoo.model import Model, tensors  # noqa: E402
from zoo.results import RESULTS, add_result, read_results  # noqa: E402

CPU_SECONDS = 300
"""CPU time of one model; afterwards its process is killed."""
SECONDS = 1800
"""Time of one model, for a process that waits."""
MEMORY = 8 << 30
"""Bytes of data of one process."""

_forked = multiprocessing.get_context("fork")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of models, with wildcards")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results (default: %(default)s)")
    parser.add_argument("--no-export", action="store_true", help="leave out torch.export")
    parser.add_argument("--again", action="store_true", help="examine models again that have a result")
    arguments = parser.parse_args()
    named = [fnmatch.filter(LIBRARIES, pattern.partition("/")[0]) for pattern in arguments.patterns]
    for library in dict.fromkeys(chain.from_iterable(named)):
        # The library is imported once, in a process that forks one process for each of its models.
        process = _forked.Process(target=_run_library, args=(library, arguments))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{library}: exit code {process.exitcode}", flush=True)


def _run_library(library: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    known = {} if arguments.again else read_results(arguments.results)
    for model in models_of(library):
        if model.name not in known and any(fnmatch.fnmatch(model.name, item) for item in arguments.patterns):
            result = _run_model(model, export=not arguments.no_export)
            add_result(arguments.results, result)
            print(_line(result), flush=True)


def _run_model(model: Model, *, export: bool) -> dict[str, Any]:
    receiver, sender = _forked.Pipe(duplex=False)
    process = _forked.Process(target=_examine, args=(model, sender, export))
    started = time.monotonic()
    process.start()
    sender.close()
    result: dict[str, Any] = {"name": model.name}
    try:
        while receiver.poll(max(0, started + SECONDS - time.monotonic())):
            result |= receiver.recv()
    except EOFError:
        pass
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()
    if "status" not in result:
        result |= {"status": "timeout" if time.monotonic() - started > CPU_SECONDS / 2 else "crashed"}
        result |= {"reason": f"the process ended with exit code {process.exitcode}"}
    return result


def _examine(model: Model, sender: Connection, export: bool) -> None:
    gc.freeze()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        examine(model, sender.send, export=export)
    except Exception as error:  # noqa: BLE001  an error of this tool, shown beside the model
        sender.send({"status": "crashed", "reason": repr(error)})


def _line(result: dict[str, Any]) -> str:
    figures = [f"{key} {result[key]:.3g}" for key in ("steps", "record", "export_seconds", "ratio") if key in result]
    export = f"export {result.get('export') or 'no'}" if "export" in result else ""
    return "; ".join(filter(None, [result["name"], result["status"], *figures, export, result.get("reason", "")[:200]]))


def warm_up() -> None:
    """Import and compile on first use what every recording and export needs, before a model is measured."""
    small = Model(name="", make=_Small, inputs=tensors(x=((2, 3, 4), 5)))
    examine(small, lambda _result: None)


class _Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)[..., 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    main()
