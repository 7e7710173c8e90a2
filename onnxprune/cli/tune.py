"""``onnxprune tune``: measure what work takes on this machine, once; choices for latency go by it from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import console, print_json, stages
from onnxprune.errors import ModelError

if TYPE_CHECKING:
    from onnxprune.structure.figures import Figures


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune", help=ABOUT["tune"])(tune)


def tune(
    forget: Annotated[bool, typer.Option("--forget", help="Go back to the built-in figures.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Measure this machine and keep the figures in the user's cache."""
    from dataclasses import asdict

    from onnxprune.structure.figures import figures_file

    path = figures_file()
    if forget:
        path.unlink(missing_ok=True)
        console.print("the built-in figures are in use")
        return
    from onnxprune.runtime.tune import tune as measure

    with stages("this machine") as tell:
        figures = measure(tell)
    try:
        figures.save(path)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be written: {error.strerror}") from error
    if json:
        print_json("tune", {"file": str(path), **asdict(figures)})
        return
    console.print(_table(figures))
    console.print(f"convolutions take {figures.block} channels at once, products {figures.step} columns")
    console.print(f"{path}: used from now on, with ONNX Runtime {figures.onnxruntime} on {figures.processor}")


def _table(figures: Figures) -> Table:
    table = Table(title="nanoseconds of", title_justify="left", title_style="bold")
    for column in ("", "1,000 multiply-adds", "1,000 numbers read", "written", "1,000 weights", "a node"):
        table.add_column(column, justify="right" if column else "left")
    for kind, (*each, node) in figures.kinds.items():
        table.add_row(kind, *(f"{1000 * number:,.0f}" for number in each), f"{node:,.0f}")
    return table
