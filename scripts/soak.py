"""Runs a server under load; writes ``soak.json`` and, with matplotlib, ``soak.png``. Exits with 1 on faults."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.load.soak import SERVER_FLAGS, Outcome, soak
from support.server import running_server


def main() -> int:
    """Run the load; print summary and faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="duration (default: %(default)g)")
    parser.add_argument("--clients", type=int, default=300, help="number of clients (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the choices of clients (default: %(default)d)")
    parser.add_argument("--health-seconds", type=float, default=1.0, help="allowed duration of a health check")
    parser.add_argument("--growth-mib", type=float, default=32.0, help="allowed growth of memory")
    parser.add_argument("--output", type=Path, default=Path("soak"), metavar="DIR", help="folder for the results")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="model-factory-soak-") as folder:
        flags = ("--metrics-listen", "127.0.0.1:0", "--log-level", "info", *SERVER_FLAGS)
        with running_server(Path(folder) / "store", *flags) as server:
            outcome = soak(server, seconds=arguments.seconds, clients=arguments.clients, seed=arguments.seed)
    faults = outcome.faults(health_seconds=arguments.health_seconds, growth_mib=arguments.growth_mib)
    how = {"seconds": arguments.seconds, "clients": arguments.clients, "seed": arguments.seed}
    report = {**how, **outcome.summary(), "faults": faults}
    (arguments.output / "soak.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    _plot(outcome, how, arguments.output / "soak.png")
    return 1 if faults else 0


def _plot(outcome: Outcome, how: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415  optional
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(5, 1, figsize=(9, 12), sharex=True, layout="constrained")
    seconds = [sample.seconds for sample in outcome.samples]
    for axis, name, label in zip(
        axes,
        ("rss_mib", "descriptors", "processes", "stored"),
        ("memory of the server's process, MiB", "open descriptors", "processes below it", "files in the store"),
        strict=False,
    ):
        axis.plot(seconds, [getattr(sample, name) for sample in outcome.samples], linewidth=1)
        if name == "rss_mib":
            axis.legend()
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    step = seconds[-2] / max(1, len(outcome.probes))
    axes[4].plot([index * step for index in range(len(outcome.probes))], [1000 * took for took in outcome.probes], ".",
                 markersize=2)  # fmt: skip
    axes[4].set_ylabel("health check, ms")
    axes[4].set_xlabel("seconds")
    axes[4].set_yscale("log")
    axes[4].grid(alpha=0.3)
    axes[0].set_title(", ".join(f"{value:g} {name}" for name, value in how.items() if name != "seed"))
    figure.savefig(path, dpi=120)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
