"""Means and deviations over the seeds of prunebench's results: tables (summary.md) and plots, from the rows alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from prunebench_table import Measured, Row

Series = Mapping[int, list[Measured]]
"""The results of one method by the ratio aimed at, one for each seed."""

TICKS = (1, 2, 4, 8, 16, 32)
COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#000000", "#98df8a", "#c5b0d5", "#ffbb78", "#aec7e8", "#ff9896",
)  # fmt: skip


class Name(NamedTuple):
    """What a curve is called by: its structure, criterion and allocation."""

    structure: str
    criterion: str
    allocation: str

    def __str__(self) -> str:
        shares = "magnitude's shares" if self.allocation == "magnitude" else self.allocation
        return f"{self.criterion}, {shares}" + (
            "" if self.structure in ("weights", "channels") else f" ({self.structure})"
        )


class Setting(NamedTuple):
    """A network and a data set."""

    network: str
    data: str


def report(rows: Sequence[Row], folder: Path) -> None:
    """Write summary.md and one picture for each network and data set."""
    lines = ["# prunebench", "", *_INTRODUCTION]
    for setting in dict.fromkeys(Setting(row.key.network, row.key.data) for row in rows):
        rows_of_setting = [row for row in rows if (row.key.network, row.key.data) == setting]
        methods = of_methods(rows_of_setting)
        lines += ["", f"## {setting.network}, {setting.data}", "", *_dense_lines(rows_of_setting)]
        for kind, title in (("zeros", "Zeros in the graph as it was"), ("shrunk", "Units cut out of the graph")):
            lines += ["", f"### {title}", "", *_table(methods[kind], _unpruned(rows_of_setting)["trained"])]
        plot(setting, methods, _unpruned(rows_of_setting), folder / f"{setting.network}-{setting.data}.png")
    (folder / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


_INTRODUCTION = (
    "Written by `python benchmarks/prunebench.py report` from the CSV files; do not edit.",
    "",
    "Top-1 in percent, mean ± standard deviation over the seeds: on the test set, and on the *validation* images that",
    "pick the best state of every training (*pruned*: before it).",
    "*ratio*: all parameters / non-zero parameters; *speed-up*: multiply-adds / non-zero multiply-adds; *bytes*: file",
    "over the dense file, for zeros after packing (unpacked it is as large as the dense one); *latency*: ONNX Runtime",
    "time over the dense network's, one thread, 64 images: measured for every shrunk row, and for zeros once a",
    "network, data set and seed (magnitude, global, 32x), since zeros change nothing there. The N:M patterns of tensor",
    "cores exist at 2x and 4x only; layers that they do not fit stay dense. Methods are named by criterion and",
    "allocation: *global* (one ranking), *uniform* (the same share of every layer), *erk*, *lamp*, *cost* (units by",
    "importance lost per parameters and multiply-adds saved, the default), *magnitude's shares* (of each layer as much",
    "as magnitude takes), *iterative* (one ranking, in 20 steps with scores made anew; all others choose in one step).",
)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; 0 for one)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def text(values: Sequence[float]) -> str:
    """Mean ± deviation."""
    mean, deviation = spread(values)
    return f"{mean:.2f} ± {deviation:.2f}"


def of_methods(rows: Sequence[Row]) -> dict[str, dict[Name, Series]]:
    """The curves of the methods that were fine-tuned without penalty, by kind."""
    grouped: dict[str, dict[Name, dict[int, list[Measured]]]] = {"zeros": {}, "shrunk": {}}
    for key, measured in rows:
        if key.start == "finetune" and key.penalty == "none" and measured.kind in grouped:
            series = grouped[measured.kind].setdefault(Name(*key[3:6]), defaultdict(list))
            series[key.target].append(measured)
    return grouped  # type: ignore[return-value]


def _unpruned(rows: Sequence[Row]) -> dict[str, list[Measured]]:
    """The dense network as trained, and trained on without pruning."""
    plain = [row for row in rows if row.key.structure == "none" and row.key.penalty == "none"]
    return {start: [row.measured for row in plain if row.key.start == start] for start in ("trained", "finetune")}


def _dense_lines(rows: Sequence[Row]) -> list[str]:
    unpruned = _unpruned(rows)
    if not unpruned["trained"]:
        return []
    first, top1 = unpruned["trained"][0], text([m.top1 for m in unpruned["trained"]])
    on = text([m.top1 for m in unpruned["finetune"]]) if unpruned["finetune"] else "not run"
    return [
        f"Dense: {first.parameters:,} parameters, {first.macs:,} multiply-adds, {first.file_bytes:,} bytes; top-1 "
        f"{top1} ({len(unpruned['trained'])} seeds). Compression 1, trained on like all others but not pruned: {on}."
    ]


def _table(methods: Mapping[Name, Series], dense: Sequence[Measured]) -> list[str]:
    lines = [
        "| method | target | ratio | speed-up | validation, pruned | validation | top-1 | bytes | latency | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, series in methods.items():
        for target, repeats in sorted(series.items()):
            latency = [m.latency for m in repeats if not np.isnan(m.latency)]
            size = spread([(m.packed_bytes or m.file_bytes) / dense[0].file_bytes for m in repeats])[0]
            cells = [
                str(name),
                f"{target}x",
                f"{spread([m.ratio for m in repeats])[0]:.1f}",
                f"{spread([m.speedup for m in repeats])[0]:.1f}",
                *(text([getattr(m, field) for m in repeats]) for field in ("validation_pruned", "validation", "top1")),
                f"{size:.3f}",
                f"{spread(latency)[0]:.2f}" if latency else "",
                str(len(repeats)),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


# --- plots


def plot(setting: Setting, methods: Mapping[str, Mapping[Name, Series]], unpruned: Mapping[str, list[Measured]],
         path: Path) -> None:  # fmt: skip
    """Top-1 error, the least on top, against compression ratio and speed-up; zeros above and shrunk graphs below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, grid = pyplot.subplots(2, 2, figsize=(11, 8.5), sharey=True)
    for panels, kind in zip(grid, ("zeros", "shrunk"), strict=True):
        for axes, field, label in zip(panels, ("ratio", "speedup"), ("compression ratio", "theoretical speed-up"),
                                      strict=True):  # fmt: skip
            _curves(axes, methods[kind], unpruned, lambda m, field=field: getattr(m, field))
            axes.set(xscale="log", yscale="log", xlabel=label, title=f"{kind}", ylabel="top-1 error, %")
            axes.minorticks_off()
            axes.set_xticks(TICKS, [f"{tick}x" for tick in TICKS])
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.grid(alpha=0.3)
        if methods[kind]:
            panels[0].legend(fontsize=6.5, loc="lower left")
    grid[0][0].invert_yaxis()
    figure.suptitle(f"{setting.network}, {setting.data}: mean and deviation over the seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=75)
    pyplot.close(figure)


def _curves(axes: object, methods: Mapping[Name, Series], unpruned: Mapping[str, list[Measured]],
            where: Callable[[Measured], float]) -> None:  # fmt: skip
    """One curve a method, from the unpruned network on; random ones dashed."""
    dense, on = unpruned["trained"], unpruned["finetune"]
    if dense:
        axes.axhline(spread(_errors(dense))[0], color="grey", linewidth=1)  # type: ignore[attr-defined]
    axes.set_prop_cycle(color=COLOURS)  # type: ignore[attr-defined]
    for name, series in methods.items():
        points = ([(1.0, *spread(_errors(on)))] if on else []) + [
            (spread([where(m) for m in repeats])[0], *spread(_errors(repeats))) for _, repeats in sorted(series.items())
        ]
        style = "--" if name.criterion == "random" else "-"
        x, y, deviation = map(list, zip(*sorted(points), strict=True))
        axes.errorbar(  # type: ignore[attr-defined]
            x, y, deviation, linestyle=style, marker=".", capsize=2, linewidth=1, label=str(name)
        )


def _errors(repeats: Sequence[Measured]) -> list[float]:
    return [100 - m.top1 for m in repeats]
