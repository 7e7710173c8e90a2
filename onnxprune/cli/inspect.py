"""``onnxprune inspect MODEL``: what could be pruned, and what not and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.flags import CustomOpsFlag, InputsFlag, InputShapeFlag
from onnxprune.cli.several import files_of
from onnxprune.cli.streams import from_standard_input


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect", help=ABOUT["inspect"])(inspect)


def inspect(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="The .onnx file, or several.", show_default=False)
    ],
    inputs: InputsFlag = None,
    input_shape: InputShapeFlag = [],  # noqa: B006
    custom_ops: CustomOpsFlag = [],  # noqa: B006
    every_group: Annotated[bool, typer.Option("--all", help="Show every group of units.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Show what could be pruned."""
    from onnxprune.pipeline.inspect import inspect as inspect_model

    for model in [file for pattern in models for file in files_of(pattern)]:
        with from_standard_input(model) as file, stages(str(model)) as tell:
            tell("analyse")
            inspection = inspect_model(file, inputs=inputs, input_shape=input_shape, custom_ops=custom_ops)
        if json:
            print_json("inspect", inspection.as_dict())
        else:
            from onnxprune.report.inspection import print_inspection

            print_inspection(console, str(model), inspection, every_group=every_group)
