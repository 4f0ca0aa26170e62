"""The report as a table and as plots."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from benchmarks.measure import Report, Row, Sample


def table(report: Report) -> str:
    """Return all rows as a Markdown table."""
    head = ("what", "median", "spread", "target", "")
    body = [(row.what + (f" ({row.note})" if row.note else ""), *_figures(row)) for row in report.rows]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *body]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _figures(row: Row) -> tuple[str, str, str, str]:
    target = "" if row.target is None else f"{'≥' if row.at_least else '≤'} {row.target:g}"
    unit = "" if row.unit == "x" else f" {row.unit}"
    return f"{row.value:.3g}{unit}", row.spread, target, row.verdict


def write_page(report: Report, machine: str, folder: Path) -> None:
    """Write ``table.md`` and a plot for each group of bars; without matplotlib only the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{machine}\n\n{table(report)}\n" + "".join(f"\nMissing: {item}\n" for item in report.missing)
    (folder / "table.md").write_text(text, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("missing: matplotlib is not installed, so there are no plots")
        return
    for title, bars in report.bars.items():
        _plot(title, bars, folder / f"{re.sub(r'[^a-z0-9]+', '-', title.split(',')[0].lower()).strip('-')}.png")


def _plot(title: str, bars: dict[str, Sample], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415  optional

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(bars) + 1.2), layout="constrained")
    names = list(bars)[::-1]
    medians = [bars[name].median for name in names]
    errors = [
        [median - min(bars[name].values) for name, median in zip(names, medians, strict=True)],
        [max(bars[name].values) - median for name, median in zip(names, medians, strict=True)],
    ]
    colours = ["tab:blue" if "model-factory" in name or "node" in name else "tab:gray" for name in names]
    axes.barh(names, medians, xerr=errors, color=colours, capsize=3)
    axes.set_xlabel(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
