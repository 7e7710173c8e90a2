"""A sweep as a table on the console, and as one page whose points show their commands when they are clicked.

The page asks nothing of a network: Vega, which draws it, comes with vl-convert-python and lies inside.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from onnxprune.errors import RecipeError
from onnxprune.model_io.text_files import write_whole
from onnxprune.pipeline.sweep_grid import shown_value
from onnxprune.pipeline.trials import COSTS
from onnxprune.pipeline.version import version
from onnxprune.report.page import render_page
from onnxprune.report.text import shown, visible

if TYPE_CHECKING:
    from onnxprune.pipeline.sweep import Sweep
    from onnxprune.pipeline.trials import Trial

_HEADS = {"latency": "latency", "size": "size", "macs": "multiply-adds"}
_ON_FRONT = "*"
_NEEDED = ("altair", "vl_convert", "jinja2")
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito


# -- the table


def print_sweep(console: Console, swept: Sweep, *, page: Path | None, picked: Mapping[str, str] | None) -> None:
    """Print one row a run, what could not be run and why, and where things were written."""
    console.print(_table(swept))
    console.print(f"{_ON_FRONT} no other run, nor the original, is as good at less cost (Pareto front)")
    machines = {trial.machine for trial in swept.trials if trial.machine}
    for machine in sorted(machines):
        console.print(shown(f"latency: CPU time of one run on {machine}"))
    for trial in swept.trials:
        if trial.failed:
            console.print(f"[yellow]{shown(trial.label)}: {shown(trial.failed)}[/]", soft_wrap=True)
    for label, reason in swept.left_out.items():
        console.print(f"[yellow]{shown(label)} was left out: {shown(reason)}[/]", soft_wrap=True)
    if page is not None:
        console.print(f"wrote [b]{shown(str(page))}[/]: a click on a point shows its command", soft_wrap=True)
    if picked is not None:
        console.print(f"wrote [b]{shown(picked['output'])}[/]: {shown(picked['settings'])}", soft_wrap=True)


def _table(swept: Sweep) -> Table:
    quality = _quality_name(swept)
    title = f"{swept.model}: {quality} against cost, after / before"
    table = Table(title=shown(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    names = list(dict.fromkeys(name for trial in swept.trials for name in trial.varied))
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for name in (quality, *_HEADS.values()):
        table.add_column(name, justify="right", no_wrap=True)
    fronts = {cost: {id(trial) for trial in swept.front(cost)} for cost in COSTS}
    for trial in swept.trials:
        settings = [shown(shown_value(trial.varied[name])) if name in trial.varied else "" for name in names]
        table.add_row(*settings, _number(_quality(trial)), *(_cost(trial, cost, fronts[cost]) for cost in COSTS))
    return table


def _cost(trial: Trial, cost: str, on_front: set[int]) -> str:
    text = _number(trial.figures.get(cost, math.nan), digits=3)
    return text + (_ON_FRONT if id(trial) in on_front else " " if text else "")


def _number(value: float, digits: int = 4) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.{digits}g}"


def _quality(trial: Trial) -> float:
    """The metric; where none was measured, how far the outputs changed; NaN where there is no result."""
    if trial.metric is not None:
        return float(trial.metric["after"])
    return trial.figures.get("output_change", math.nan)


def _metric(swept: Sweep) -> Mapping[str, Any] | None:
    return next((trial.metric for trial in swept.trials if trial.metric is not None), None)


def _quality_name(swept: Sweep) -> str:
    metric = _metric(swept)
    return "output change" if metric is None else str(metric["name"])


# -- the page


def check_page() -> None:
    """Refuse, before any work is done, a page that cannot be made.

    Raises:
        RecipeError: A package is not installed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        package = missing[0].replace("vl_convert", "vl-convert-python")
        raise RecipeError(f"the page of a sweep needs {package}: pip install 'onnxprune[sweep]', or give --no-page")


def write_page(swept: Sweep, path: Path) -> None:
    """Write the page, whole or not at all; an older one is replaced.

    Raises:
        RecipeError: A package is not installed.
        ModelError: It cannot be written.
    """
    write_whole(path, render_sweep(swept), "the page")


def render_sweep(swept: Sweep) -> str:
    """Return the page.

    Raises:
        RecipeError: A package is not installed.
    """
    check_page()
    vl_convert: Any = importlib.import_module("vl_convert")
    names = list(dict.fromkeys(name for trial in swept.trials for name in trial.varied))
    points = _points(swept)
    content = {
        "model": Path(swept.model).name,
        "version": version(),
        "quality": _quality_name(swept),
        "metric": _metric(swept),
        "names": [name.replace("_", " ") for name in names],
        "rows": [_row(trial, names, point) for trial, point in zip(swept.trials, points, strict=True)],
        "left_out": dict(swept.left_out),
        "machines": sorted({trial.machine for trial in swept.trials if trial.machine}),
        "costs": _HEADS,
        "charts": _script_safe([_chart(swept, points, names, cost) for cost in COSTS]),
        "commands": _script_safe([visible(trial.command) for trial in swept.trials]),
        "labels": _script_safe([visible(trial.label) for trial in swept.trials]),
        "vega": vl_convert.javascript_bundle(),
    }
    return render_page("sweep.html.j2", content, flag="the page of a sweep")


def _script_safe(content: Any) -> str:
    """JSON that can stand in a script, whatever its texts hold."""
    text = json.dumps(content)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _points(swept: Sweep) -> list[dict[str, Any]]:
    """One point a trial, as plain data."""
    fronts = {cost: {id(trial) for trial in swept.front(cost)} for cost in COSTS}
    points = []
    for number, trial in enumerate(swept.trials):
        figures = {cost: _finite(trial.figures.get(cost, math.nan)) for cost in COSTS}
        marks = {f"{cost}_front": id(trial) in fronts[cost] for cost in COSTS}
        settings = {name: visible(shown_value(value)) for name, value in trial.varied.items()}
        quality = _finite(_quality(trial))
        points.append(
            {"number": number, "label": visible(trial.label), "quality": quality, **settings, **figures, **marks}
        )
    return points


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(trial: Trial, names: list[str], point: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "number": point["number"],
        "settings": [shown_value(trial.varied[name]) if name in trial.varied else "" for name in names],
        "quality": point["quality"],
        "sparsity": trial.figures.get("sparsity"),
        "costs": [(point[cost], point[f"{cost}_front"]) for cost in COSTS],
        "notes": trial.notes,
        "failed": trial.failed,
    }


def _chart(swept: Sweep, points: list[dict[str, Any]], names: list[str], cost: str) -> dict[str, Any]:
    """The specification of a plot of quality against a cost, for Vega-Lite."""
    alt: Any = importlib.import_module("altair")
    drawn = [point for point in points if point[cost] is not None and point["quality"] is not None]
    metric = _metric(swept)
    original = {"number": -1, "label": "original", cost: 1.0, "quality": 0.0 if metric is None else metric["before"]}
    x = alt.X(f"{cost}:Q", title=COSTS[cost], scale=alt.Scale(zero=False, padding=14), axis=alt.Axis(tickCount=6))
    y = alt.Y("quality:Q", title=_quality_name(swept), scale=alt.Scale(zero=False, padding=14))
    front_line = (
        alt.Chart(alt.Data(values=[*(p for p in drawn if p[f"{cost}_front"]), original]))
        .mark_line(color="#7a828c", strokeDash=[4, 3])
        .encode(x=x, y=y, order=alt.Order(f"{cost}:Q"))
    )
    start = (
        alt.Chart(alt.Data(values=[original]))
        .mark_point(shape="diamond", filled=True, size=120, color="#7a828c")
        .encode(x=x, y=y, tooltip=[alt.Tooltip("label:N", title="model"), alt.Tooltip("quality:Q")])
    )
    layers = alt.layer(front_line, start, _marks(alt, drawn, names, cost, x, y, swept))
    specification: dict[str, Any] = layers.properties(width="container", height=280, background="transparent").to_dict(
        validate=False
    )
    return specification


def _marks(alt: Any, drawn: list[dict[str, Any]], names: list[str], cost: str, x: Any, y: Any, swept: Sweep) -> Any:
    """One mark a run: colour and shape say the first settings that are no number, filled ones are on the front."""
    kinds = [name for name in names if len({p.get(name) for p in drawn}) > 1 and not _numeric(drawn, name)]
    legend = alt.Legend(orient="bottom", direction="vertical")
    colour = (
        alt.Color(f"{kinds[0]}:N", scale=alt.Scale(range=list(_COLOURS)), legend=legend)
        if kinds
        else alt.value(_COLOURS[0])
    )
    shape = {"shape": alt.Shape(f"{kinds[1]}:N", legend=legend)} if len(kinds) > 1 else {}
    chosen = alt.param(name="chosen", value=-1)
    tooltip = [
        *(alt.Tooltip(f"{name}:N", title=name.replace("_", " ")) for name in names),
        alt.Tooltip("quality:Q", title=_quality_name(swept), format=".4f"),
        *(alt.Tooltip(f"{other}:Q", title=_HEADS[other], format=".3f") for other in COSTS),
    ]
    return (
        alt.Chart(alt.Data(values=drawn))
        .mark_point(filled=True, cursor="pointer", strokeWidth=2)
        .encode(
            x=x,
            y=y,
            color=colour,
            **shape,
            opacity=alt.condition(f"datum.{cost}_front", alt.value(1), alt.value(0.35)),
            size=alt.condition("datum.number === chosen", alt.value(320), alt.value(110)),
            tooltip=tooltip,
        )
        .add_params(chosen)
    )


def _numeric(points: list[dict[str, Any]], name: str) -> bool:
    values = [str(p.get(name, "")) for p in points]
    return all(value.replace(".", "", 1).isdigit() for value in values if value)
