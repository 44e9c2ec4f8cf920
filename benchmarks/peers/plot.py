"""Draws the medians of a results file: rows of panels for each model, one a case. Needs matplotlib.

Usage: plot.py RESULTS.json PLOT.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as pyplot

MOST_COLUMNS = 7


def batches(cases: list[tuple[str, Any]], size: int) -> list[list[tuple[str, Any]]]:
    return [cases[begin : begin + size] for begin in range(0, len(cases), size)]


def main(source: Path, target: Path) -> None:
    result = json.loads(source.read_text())
    models = result["figures"]
    columns = min(max(len(cases) for cases in models.values()), MOST_COLUMNS)
    rows = [(model, part) for model, cases in models.items() for part in batches(list(cases.items()), columns)]
    names = list(dict.fromkeys(name for cases in models.values() for case in cases.values() for name in case))
    size = (2.1 * columns + 1.5, (0.22 * len(names) + 0.9) * len(rows))
    figure, axes = pyplot.subplots(len(rows), columns, figsize=size, squeeze=False, sharey="row")
    for row, (model, cases) in zip(axes, rows, strict=True):
        for panel in row[len(cases) :]:
            panel.set_axis_off()
        for panel, (case, measured) in zip(row, cases, strict=False):
            values = [measured.get(name, {}).get("median", 0) for name in names]
            colors = ["#c0392b" if name.partition("-")[0] == "sixfold" else "#7f8c8d" for name in names]
            bars = panel.barh(names, values, color=colors)
            panel.bar_label(bars, fmt=lambda value: f"{value:.4g}" if value else "", fontsize=6, padding=1)
            panel.set_title(f"{model}\n{case}" if panel is row[0] else case, fontsize=8)
            panel.margins(x=0.25)
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].invert_yaxis()
    figure.supxlabel(f"{result['mode']}, medians, {result['date'][:10]}, {result['machine']['cpu']}", fontsize=8)
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
