"""Have one server do thousands of jobs of every ending, and print what it has left. Ends with 1 on faults."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.leaks import ROUND, Leaks, table
from support.server import running_server


def main() -> int:
    """Run one; print its table and its faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="how many (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=1, help="of what comes when (default: %(default)d)")
    parser.add_argument(
        "--server-mib",
        type=float,
        default=4.0,
        help="most that the server may grow after the first quarter (default: %(default)g)",
    )
    parser.add_argument("--forks-mib", type=float, default=1.0, help="the same of the fork server")
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
    print("\n".join(faults) or "nothing has leaked")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
