"""Runs thousands of jobs with every ending on a server, and prints the resources in use. Exits with 1 on leaks."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.load.leaks import ROUND, Leaks, table
from support.server import running_server


def main() -> int:
    """Run the jobs; print the table and the faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="number of jobs (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the order of jobs (default: %(default)d)")
    parser.add_argument(
        "--server-mib",
        type=float,
        default=4.0,
        help="allowed growth of the server after the first quarter (default: %(default)g)",
    )
    parser.add_argument(
        "--forks-mib", type=float, default=1.0, help="allowed growth of the fork server (default: %(default)g)"
    )
    arguments = parser.parse_args()
    rounds = max(4, -(-arguments.jobs // ROUND))
    with (
        tempfile.TemporaryDirectory(prefix="model-factory-leaks-") as folder,
        running_server(Path(folder) / "store") as server,
    ):
        leaks = Leaks(server, arguments.seed)
        for number in range(rounds):
            leaks.round()
            print(f"round {number + 1} of {rounds}: {leaks.figures[-1]}", file=sys.stderr)
    print(table(leaks.figures))
    print({name: leaks.endings[name] for name in sorted(leaks.endings)})
    faults = leaks.faults(rounds // 4, server_mib=arguments.server_mib, forks_mib=arguments.forks_mib)
    print("\n".join(faults) or "no leaks")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
