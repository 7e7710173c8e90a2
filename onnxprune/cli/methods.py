"""``onnxprune methods``: the values of the settings that a method of pruning is made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import console, print_json
from onnxprune.report.text import shown


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("methods", help=ABOUT["methods"])(methods)


def methods(json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False) -> None:
    """List what a method of pruning can be made of."""
    from onnxprune.pipeline.methods import catalogue

    entries = catalogue()
    if json:
        print_json("methods", {"settings": [asdict(entry) for entry in entries]})
        return
    for setting in dict.fromkeys(entry.setting for entry in entries):
        values = [entry for entry in entries if entry.setting == setting]
        columns = ["name", *(c for c in ("fits", "needs") if len({getattr(v, c) for v in values}) > 1), "about"]
        table = Table(title=f"--{setting}", title_justify="left", title_style="bold")
        for column in columns:
            table.add_column("" if column == "about" else column, overflow="fold")
        for entry in values:
            table.add_row(*(shown(getattr(entry, column)) for column in columns))
        console.print(table)
