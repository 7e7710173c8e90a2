"""The page of the leaderboard: tables in Markdown, and one plot of what is left at each cost."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from leaderboard_methods import COSTS, METHODS, Cost, Method
from same_bytes import commit_of_package

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, PLOT = DOCS / "leaderboard.md", DOCS / "images" / "leaderboard.svg"
_PACKAGES = {"onnxsim": "onnxsim", "torch_pruning": "torch-pruning"}
_ALWAYS = ("onnxruntime", "onnx", "numpy")

_HEAD = """\
# Leaderboard

What is left of a network, by method and cost, without labels and without training. Figures are the mean and the
deviation over three draws of the calibration samples; without a deviation it is one draw. A draw is 334 to 1,024
samples of the training set without their labels. Scores are accuracy in percent on held-out samples; of MiniLM,
Spearman's rank correlation. `work` and `latency` are after / before: multiply-adds and CPU time of one sample in ONNX
Runtime on one thread. Latency says little of networks that take microseconds. `bytes` is the file, after / before,
zeros packed. `CPU s` is the whole run. `removed == masked` is the largest difference between the cut model and the
original with the same units zeroed, relative to the largest output. It is taken before anything is fitted, and only
onnxprune shows it.

Written by `python benchmarks/leaderboard.py` ({date}; {versions}).
A row without figures says why. A run goes on where the last one ended: rows of earlier runs stay as they were measured,
and what the page lacks is not measured yet.
"""


def versions(methods: Iterable[Method]) -> dict[str, str]:
    """The versions of what takes part, by name."""
    packages = [_PACKAGES[method.package] for method in methods if method.package and method.installed]
    versions = {name: importlib.metadata.version(name) for name in (*packages, *_ALWAYS)}
    return {"onnxprune": commit_of_package(), **versions}


def page(content: Mapping[str, Any]) -> str:
    """The whole page."""
    entries = content["entries"]
    listed = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    parts = [_HEAD.format(date=content["date"], versions=listed), "![What is left, by cost](images/leaderboard.svg)\n"]
    for label in dict.fromkeys(entry["network"] for entry in entries):
        parts.append(_section(label, [entry for entry in entries if entry["network"] == label]))
    return "\n".join(parts)


def _section(label: str, entries: Sequence[Mapping[str, Any]]) -> str:
    dense = next((entry["score"] for entry in entries if entry["method"] == "dense"), float("nan"))
    lines = [
        f"## {label}", "", f"Dense: {_number(dense)}.", "",
        "| cost | method | score | work | latency | bytes | CPU s | removed == masked |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    taking_part = {entry["method"] for entry in entries if "score" in entry}
    for cost in COSTS:
        for method in METHODS:
            rows = [e for e in entries if (e["method"], e["cost"]) == (method, cost.name)]
            if rows and method in taking_part:
                lines.append(f"| {cost.name} | {method} | {' | '.join(_cells(rows, cost))} |")
    for method in METHODS:
        reasons = dict.fromkeys(entry["why"] for entry in entries if entry["method"] == method and "why" in entry)
        if method not in taking_part and reasons:
            lines += ["", f"{method}: {'; '.join(reasons)}."]
    return "\n".join(lines) + "\n"


def _cells(rows: Sequence[Mapping[str, Any]], cost: Cost) -> list[str]:
    runs = [row for row in rows if "score" in row]
    if not runs:
        return [str(rows[0]["why"]).replace("|", "/"), *[""] * 5]
    differences = [row["difference"] for row in runs if row.get("difference") is not None]
    return [
        spread([row["score"] for row in runs]),
        f"{_mean(runs, 'work'):.2f}" if cost.units else "",
        f"{_mean(runs, 'latency'):.2f}",
        f"{_mean(runs, 'bytes'):.2f}",
        f"{_mean(runs, 'seconds'):.1f}",
        f"{max(differences):.0e}" if differences and cost.units else "",
    ]


def spread(scores: Sequence[float]) -> str:
    """Mean and deviation of some draws; of one, the figure alone."""
    mean, deviation = float(np.mean(scores)), float(np.std(scores))
    return _number(mean) if len(scores) == 1 else f"{_number(mean)} ± {_number(deviation, like=mean)}"


def _number(value: float, like: float | None = None) -> str:
    """Percent with one digit, correlations with three."""
    scale = value if like is None else like
    return f"{value:.3f}" if abs(scale) <= 1 else f"{value:.1f}"


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def plot(content: Mapping[str, Any], path: Path) -> None:
    """Draw one row of panels for each network: units on the left, single weights on the right."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "leaderboard"  # the same figures give the same file
    from matplotlib import pyplot

    entries = content["entries"]
    labels = list(dict.fromkeys(entry["network"] for entry in entries))
    figure, rows = pyplot.subplots(len(labels), 2, figsize=(10, 2.6 * len(labels)), squeeze=False, sharey="row")
    colours = {method: f"C{number}" for number, method in enumerate(METHODS)}
    for label, axes in zip(labels, rows, strict=True):
        dense = next((e["score"] for e in entries if (e["network"], e["method"]) == (label, "dense")), None)
        for axis, units in zip(axes, (True, False), strict=True):
            if dense is not None:
                axis.axhline(dense, color="0.6", linewidth=1, linestyle=":")
            for method in METHODS:
                points = _points(entries, label, method, units)
                if points:
                    x, mean, deviation = map(list, zip(*points, strict=True))
                    axis.errorbar(x, mean, deviation, label=method, color=colours[method], marker="o", capsize=2)
            axis.set_title(f"{label}: {'units' if units else 'single weights'}", fontsize=9)
            axis.set_xlabel("share of the work left" if units else "share of the weights gone", fontsize=8)
            if units:
                axis.invert_xaxis()
    handles = {}
    for axis in rows.flat:
        handles.update({name: handle for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)})
    figure.legend(list(handles.values()), list(handles), loc="upper center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / (1 + len(labels))))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _points(
    entries: Sequence[Mapping[str, Any]], label: str, method: str, units: bool
) -> list[tuple[float, float, float]]:
    """Cost, mean and deviation, for a curve."""
    points = []
    for cost in COSTS:
        key = (label, method, cost.name)
        rows = [e for e in entries if (e["network"], e["method"], e["cost"]) == key]
        scores = [row["score"] for row in rows if "score" in row]
        if scores and cost.units == units and cost.pattern is None:
            points.append((cost.amount, float(np.mean(scores)), float(np.std(scores))))
    return points


def write_page(content: Mapping[str, Any]) -> None:
    """Write page and plot."""
    plot(content, PLOT)
    PAGE.write_text(page(content))
