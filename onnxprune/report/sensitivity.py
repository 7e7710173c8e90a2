"""A scan of sensitivity as a table on the console, and as a plot (which needs matplotlib)."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from onnxprune.errors import RecipeError
from onnxprune.model_io.text_files import write_whole
from onnxprune.pipeline.scan import OUTPUT_ERROR, Scan
from onnxprune.report.text import cut_middle, readable_name, shown, visible

_FORMATS = (".png", ".svg", ".pdf")
_LONGEST_NAME = 40
_MOST_NAMED = 20  # curves beyond these, the least sensitive, are drawn without a name


def print_scan(console: Console, model: str, scan: Scan) -> None:
    """Print one row a layer or group: what is measured when a share of it alone goes."""
    what = "layer" if scan.structure == "weights" else "group of units"
    title = f"{model}: {scan.measured} when a share of one {what} goes (as it is: {scan.dense:.4g})"
    table = Table(title=shown(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(what, overflow="fold", min_width=16)
    for name in ("weights", *(f"{level:g}" for level in scan.table.levels)):
        table.add_column(name, justify="right", no_wrap=True)
    for name, size, values in zip(scan.table.names, scan.table.sizes, scan.table.errors.tolist(), strict=True):
        layer = cut_middle(readable_name(name, scan.nodes), _LONGEST_NAME)
        table.add_row(shown(layer), f"{size:,}", *(f"{value:.3g}" for value in values))
    console.print(table)
    for name, reason in scan.skipped.items():
        console.print(f"[yellow]{shown(name)} was left out: {shown(reason)}[/]")


def check_plot(path: Path) -> None:
    """Refuse, before any work is done, a plot that cannot be made.

    Raises:
        RecipeError: It is of an unknown kind, or matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise RecipeError(f"--plot '{path}': the name has to end in {', '.join(_FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise RecipeError("--plot needs matplotlib: pip install 'onnxprune[report]'")


def write_plot(scan: Scan, path: Path, model: str) -> None:
    """Draw one curve a layer or group against the share that goes; an older file is replaced.

    Raises:
        ModelError: The file cannot be written.
    """
    write_whole(path, _drawn(scan, model, path.suffix.lower().removeprefix(".")), "the plot")


def _label(name: str) -> str:
    """A name as Matplotlib draws it, which takes what stands between dollars for a formula."""
    return visible(name).replace("$", r"\$")


def _drawn(scan: Scan, model: str, kind: str) -> bytes:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=[colormaps["tab20"](i) for i in range(_MOST_NAMED)])
    table, falls = scan.table, scan.measured not in (OUTPUT_ERROR, "mse")
    order = (table.errors[:, -1] * (1 if falls else -1)).argsort(kind="stable")
    for rank, i in enumerate(order.tolist()):
        name = _label(readable_name(table.names[i], scan.nodes)) if rank < _MOST_NAMED else None
        axes.plot([0.0, *table.levels], [scan.dense, *table.errors[i].tolist()], marker="o", markersize=3, label=name)
    axes.set_xlabel("sparsity of one " + ("layer" if scan.structure == "weights" else "group of units") + " alone")
    axes.set_ylabel(scan.measured)
    axes.set_title(_label(model))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="best")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
