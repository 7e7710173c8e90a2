"""Mean and deviation over the seeds of the han2015 results, as a table (summary.md) and plots, from the JSON files."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from lenets import RESULTS

Entry = dict[str, Any]
Curve = list[tuple[float, list[Entry]]]
HAN = {"lenet-300-100": (12, 1.59), "lenet-5": (12, 0.77)}
RATIO_TICKS = (4, 10, 20, 50, 100, 200)
GUO = {"lenet-300-100": (56, 1.99), "lenet-5": (108, 0.91)}


def summarise(folder: str) -> None:
    """Write summary.md and the plots beside the results."""
    entries_of: dict[str, dict[str, dict[float, list[Entry]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for path in sorted((RESULTS / folder).glob("*-seed*.json")):
        for entry in json.loads(path.read_text()):
            entries_of[entry["network"]][entry["method"]][entry["target"]].append(entry)
    lines = ["# Han et al. 2015, reproduced", ""]
    for network, methods in entries_of.items():
        ordered = sorted(methods.items(), key=lambda item: not item[0].startswith("dense"))
        curves = {method: sorted(targets.items()) for method, targets in ordered}
        lines += [f"## {network}", "", *table(curves), ""]
        plot_chain(network, curves, RESULTS / folder / f"{network}.png")
        if any(method.startswith(("l1-", "l2-")) for method in curves):
            plot_figure5(curves, RESULTS / folder / f"{network}-figure5.png")
    (RESULTS / folder / "summary.md").write_text("\n".join(lines))
    print("\n".join(lines))


def spread(entries: list[Entry], key: str) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; 0 for one) of a figure over the seeds."""
    values = [float(entry[key]) for entry in entries]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def table(curves: dict[str, Curve]) -> list[str]:
    """A Markdown table, one line for each method and target."""
    lines = [
        "| method | target | ratio | test error % | validation error % | MACs left | latency (batch 1 / 64) | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, curve in curves.items():
        for target, entries in curve:
            test, validation = spread(entries, "test_error"), spread(entries, "validation_error")
            speed = "" if "macs_left" not in entries[0] else f"{spread(entries, 'macs_left')[0]:.3f}"
            latency = "" if not speed else " / ".join(f"{spread(entries, f'latency_batch{n}')[0]:.2f}" for n in (1, 64))
            lines.append(
                f"| {method} | {target:g} | {spread(entries, 'ratio')[0]:.1f} | {test[0]:.2f} ± {test[1]:.2f} | "
                f"{validation[0]:.2f} ± {validation[1]:.2f} | {speed} | {latency} | {len(entries)} |"
            )
    return lines


def plot_chain(network: str, curves: dict[str, Curve], path: Path) -> None:
    """Test error against the compression ratio, beside the published points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    for method in ("magnitude", "lamp"):
        if method in curves:
            points = [(spread(e, "ratio")[0], *spread(e, "test_error")) for _, e in curves[method]]
            axes.errorbar(*map(list, zip(*points, strict=True)), marker="o", capsize=3, label=method)  # type: ignore[arg-type]
    if "dense" in curves:
        axes.axhline(spread(curves["dense"][0][1], "test_error")[0], color="grey", linestyle="--", label="dense")
    for (ratio, error), name, marker in ((HAN[network], "Han 2015", "s"), (GUO[network], "Guo 2016", "^")):
        axes.plot([ratio], [error], marker, color="black", label=name)
    axes.set(xscale="log", xlabel="compression ratio, all / non-zero", ylabel="test error, %", title=network)
    axes.set_xticks(RATIO_TICKS, [f"{ratio}x" for ratio in RATIO_TICKS])
    axes.minorticks_off()
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_figure5(curves: dict[str, Curve], path: Path) -> None:
    """Change of accuracy against the share of weights that went, as Han's Figure 5 draws it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    for method, style in {
        "l2-pruned": "--",
        "l1-pruned": "--",
        "l1-retrained": "-",
        "l2-retrained": "-",
        "l2-iterated": "-",
    }.items():
        if method in curves:
            dense = spread(curves[f"dense-{method[:2]}"][0][1], "test_error")[0]
            gone = [100 * (1 - share) for share, _ in curves[method]]
            change = [dense - spread(entries, "test_error")[0] for _, entries in curves[method]]
            axes.plot(gone, change, style, marker="o", label=method)
    axes.set(ylim=(-4.5, 0.5), xlabel="weights pruned, %", ylabel="change of accuracy, points")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
