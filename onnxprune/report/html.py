"""One self-contained HTML page about a run: verdict first, then figures, layers, groups, what is pinned, the recipe.

Nothing is fetched: style, script and plots are inside, and the page forbids itself any request. Needs jinja2.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import onnxruntime

from onnxprune.model_io.text_files import write_whole
from onnxprune.pipeline.inspect import Inspection, inspect
from onnxprune.pipeline.result import measured_figures
from onnxprune.pipeline.version import version
from onnxprune.recipe import requirements
from onnxprune.report.console import NO_FASTER, changed_by, recovery_line
from onnxprune.report.curves import training_curves
from onnxprune.report.layers import BINS, Layer, layers
from onnxprune.report.next_steps import Files, next_steps
from onnxprune.report.page import render_page
from onnxprune.verification.reach import Reach
from onnxprune.verification.requirements import missed_limits

if TYPE_CHECKING:
    from onnxprune.pipeline.result import Result

_MOST_ROWS = 1000  # of a table; beyond, the largest layers and the first groups are shown
_MOST_PLOTS = 300
_MOST_RECORD = 400_000  # characters
_WIDTH, _HEIGHT = 96, 28  # of a plot of magnitudes


def write_report(original: ir.Model, result: Result, path: str | Path, files: Files, *, sha256: str = "") -> None:
    """Write the page; it appears whole or not at all, and replaces an older one.

    Args:
        original: The model before.
        result: The run.
        path: Where the page goes.
        files: The names of the run's files.
        sha256: That of the model that was written; "" where none was.

    Raises:
        RecipeError: jinja2 is not installed.
        ModelError: The file cannot be written.
    """
    write_whole(Path(path), render(original, result, files, sha256=sha256), "the report")


def render(original: ir.Model, result: Result, files: Files, *, sha256: str = "") -> str:
    """Return the page.

    Raises:
        RecipeError: jinja2 is not installed.
    """
    return render_page("page.html.j2", {**_content(original, result, files), "sha256": sha256}, flag="--report")


def _content(original: ir.Model, result: Result, files: Files) -> dict[str, Any]:
    inspection = inspect(original)
    rows = sorted(layers(original, result), key=lambda layer: -layer.total)
    record = result.record().as_text()
    recipe = result.recipe.model_dump(mode="json", exclude_defaults=True)
    shown = rows[:_MOST_ROWS]
    limits = [requirements.parse(text) for text in result.recipe.require]
    plots = [_magnitudes(layer) if i < _MOST_PLOTS else "" for i, layer in enumerate(shown)]
    return {
        "model": Path(files.model).name,
        "output": Path(files.output).name if files.output else None,
        "next_steps": next_steps(result, files),
        "version": version(),
        "result": result,
        "verdict": result.verdict,
        "reach": [Reach(**reach).line for reach in result.reach[-1:]],
        "headline": f"{result.headline}.",
        "changed": changed_by(result),
        "recovered": recovery_line(result.recovered) if result.recovered is not None else "",
        "trade_off": _trade_off(result),
        "sensitivity": [(row, _curve(row)) for row in _scan(result)[:_MOST_ROWS]],
        "figures": () if result.verdict is None else result.verdict.rows,
        "limits": [str(limit) for limit in limits],
        "missed": missed_limits(limits, measured_figures(result)),
        "layers": list(zip(shown, plots, strict=True)),
        "more_layers": len(rows) - len(shown),
        "packed": any(layer.form != "dense" for layer in rows),
        "groups": inspection.groups[:_MOST_ROWS],
        "more_groups": max(0, len(inspection.groups) - _MOST_ROWS),
        "pinned": _pinned(inspection),
        "unruled": sorted(inspection.unruled.items()),
        "curves": training_curves(result.retraining),
        "made": _made(),
        "no_faster": "" if result.faster else NO_FASTER,
        "recipe": json.dumps(recipe, indent=1),
        "record": record if len(record) <= _MOST_RECORD else "",
        "record_size": len(record),
        "source": result.source,
    }


def _made() -> dict[str, str]:
    """When and where the page is made."""
    return {
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "host": f"{platform.node() or 'a machine without a name'} ({platform.system()} {platform.machine()})",
        "software": f"ONNX Runtime {onnxruntime.__version__} and Python {platform.python_version()}",
    }


def _scan(result: Result) -> list[Mapping[str, Any]]:
    """What a scan of the dense model found, a row a layer; empty where there was none."""
    rows: list[Mapping[str, Any]] = (result.steps[0].get("sensitivity") if result.steps else None) or []
    return rows


def _curve(row: Mapping[str, Any]) -> str:
    """Points of an SVG line: the error of the outputs, up to 1, by the share of a layer that goes."""
    points = [(0.0, 0.0), *((float(k[:-1]) / 100, float(v)) for k, v in row.items() if k.endswith("%"))]
    return " ".join(f"{_WIDTH * x:.1f},{_HEIGHT * (1 - min(y, 1.0)):.1f}" for x, y in points)


def _trade_off(result: Result) -> dict[str, Any] | None:
    """The runs of a search by sparsity, as rows and as a plot from 0 to 1; None where nothing was searched."""
    if result.target is None or not result.target.tries:
        return None
    tries = sorted(result.target.tries, key=lambda one: one.sparsity)
    top = max(1e-9, result.target.wanted, *(one.value for one in tries))
    width, height = 4 * _WIDTH, 4 * _HEIGHT

    def place(sparsity: float, value: float) -> tuple[float, float]:
        return round(width * sparsity, 1), round(height * (1 - max(value, 0.0) / top), 1)

    return {
        "name": result.target.target.replace("_", " "),
        "wanted": result.target.wanted,
        "tries": tries,
        "points": [place(one.sparsity, one.value) for one in tries],
        "limit": place(0, result.target.wanted)[1],
        "width": width,
        "height": height,
        "top": top,
    }


def _pinned(inspection: Inspection) -> list[tuple[str, int, list[str]]]:
    """Reasons, how many axes each holds, and weights as examples."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for weight in inspection.weights:
        for text in weight.pinned:
            reason = text.split(": ", 1)[-1]
            counts[reason] += 1
            names = examples.setdefault(reason, [])
            if len(names) < 3 and weight.name not in names:
                names.append(weight.name)
    return [(reason, count, examples[reason]) for reason, count in counts.most_common(200)]


def _magnitudes(layer: Layer) -> Sequence[str] | str:
    """Return two SVG paths, removed and kept weights by magnitude, stacked; "" where there is nothing to draw."""
    if not layer.kept_by_size:
        return ""
    totals = [k + r for k, r in zip(layer.kept_by_size, layer.removed_by_size, strict=True)]
    top = max(totals) or 1
    kept = _steps(layer.kept_by_size, [0] * BINS, top)
    removed = _steps(totals, layer.kept_by_size, top)
    return (removed, kept)


def _steps(upper: Sequence[int], lower: Sequence[int], top: int) -> str:
    """Return the outline of bars from `lower` to `upper` as an SVG path."""
    width = _WIDTH // BINS
    parts = []
    for i, (high, low) in enumerate(zip(upper, lower, strict=True)):
        if high > low:
            y, height = _HEIGHT * (1 - high / top), _HEIGHT * (high - low) / top
            parts.append(f"M{i * width} {y:.1f}h{width - 1}v{height:.1f}h-{width - 1}z")
    return "".join(parts)
