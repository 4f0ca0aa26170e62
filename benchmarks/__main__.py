"""Measures all contenders in alternating rounds, prints a table, and writes table and plots to a folder.

Usage: python -m benchmarks [--payload-mib N] [--ranks-mib N] [--repeats N] [--only GROUP] [--output DIR]
"""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import tempfile
from pathlib import Path

import torch

import model_factory
import model_factory_server
from benchmarks.architectures import measure_architectures
from benchmarks.client import measure_client
from benchmarks.measure import Report
from benchmarks.page import table, write_page
from benchmarks.ranks import measure_ranks
from benchmarks.server_side import measure_server
from benchmarks.servers import our_server
from benchmarks.wire import Servers, measure_wire

GROUPS = ("wire", "client", "server", "architectures", "ranks")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--payload-mib", type=int, default=1024, help="size of the transferred blob (default: %(default)s)"
    )
    parser.add_argument(
        "--ranks-mib", type=int, default=1350, help="size of the model of the ranks (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="measured rounds, after a warm-up round (default: %(default)s)"
    )
    parser.add_argument(
        "--only", choices=GROUPS, action="append", help="a group to measure (default: all); may be repeated"
    )
    parser.add_argument("--folder", type=Path, help="folder for stores and caches (default: a temporary folder)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for table and plots, for example docs/performance"
    )
    arguments = parser.parse_args()
    report = Report()
    try:
        _measure(report, arguments)
    finally:  # also print the rows before a failure
        _print(report, arguments)


def _measure(report: Report, arguments: argparse.Namespace) -> None:
    for package in (model_factory, model_factory_server):  # pip compiles installed packages; a checkout is not compiled
        compileall.compile_dir(Path(package.__file__).parent, quiet=2)
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=arguments.folder) as name:
        folder, groups = Path(name), arguments.only or GROUPS
        with our_server(folder / "store", "--no-share-store") as server:
            if "wire" in groups:
                with our_server(folder / "store") as sharing:
                    servers = Servers(store=folder / "store", quiet=server.address, sharing=sharing.address)
                    measure_wire(report, folder, servers, arguments.payload_mib << 20, arguments.repeats)
            if "client" in groups:
                measure_client(report, folder, server.address, arguments.repeats)
            if "server" in groups:
                measure_server(report, folder / "store", server, arguments.repeats)
        if "architectures" in groups:
            measure_architectures(report, folder, max(1, arguments.repeats // 2))
        if "ranks" in groups:
            measure_ranks(report, folder, arguments.ranks_mib << 20, max(1, arguments.repeats // 2))


def _print(report: Report, arguments: argparse.Namespace) -> None:
    machine = f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, torch {torch.__version__}"
    print(table(report))
    print(f"\n{machine}; {arguments.repeats} rounds; load {os.getloadavg()[0]:.1f}")
    for item in report.missing:
        print(f"missing: {item}")
    if arguments.output is not None:
        write_page(report, machine, arguments.output)


if __name__ == "__main__":
    main()
