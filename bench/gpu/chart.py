"""`python -m bench chart REPORT.json CHART.png`: linear_4bit's time as a fraction of bf16's over M."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bench.gpu import targets
from bench.gpu.cells import Cell

LINES = {  # contender: colour, width, name
    "qbits": ("#c0392b", 2.4, "qbits nf4"),
    "humming": ("#2c7fb8", 1.3, "humming int4"),
    "bitsandbytes": ("#636363", 1.3, "bitsandbytes nf4"),
    "gemlite": ("#7fbf7b", 1.3, "gemlite int4"),
}
TOP = 2.0  # of the vertical axis: what is slower leaves it


def series(cells: Sequence[Cell], contender: str) -> dict[str, list[tuple[int, float]]]:
    """By weight: (M, time over bf16's) of each cell that has both."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for cell in cells:
        if cell.table == "linear_4bit" and contender in cell.times and "bf16" in cell.times:
            point = (int(cell.work["m"]), cell.times[contender] / cell.times["bf16"])
            lines.setdefault(f"{cell.work['n']:.0f} x {cell.work['k']:.0f}", []).append(point)
    return lines


def draw(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [Cell.from_record(record) for record in report["cells"]]
    panels = list(series(cells, "qbits"))
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 5), dpi=100, sharex=True, sharey=True, squeeze=True)
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.axhline(1, color="black", linewidth=0.8)
        for contender, (colour, width, name) in LINES.items():
            if points := series(cells, contender).get(panel):
                axis.plot(*zip(*points, strict=True), color=colour, linewidth=width, marker=".", label=name)
        axis.set_title(panel, fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_xticks(targets.ROWS, [str(m) for m in targets.ROWS], fontsize=7)
        axis.set_ylim(0, TOP)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles, names = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].legend(
        handles, names, loc="center", fontsize=9, title=f"time over bf16 cuBLAS\n{report['gpu']}"
    )
    figure.supxlabel("rows of x", fontsize=9)
    figure.tight_layout(pad=0.6)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench chart", description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("chart", type=Path)
    args = parser.parse_args(argv)
    draw(json.loads(args.report.read_text()), args.chart)
    return 0
