"""``onnxprune sensitivity MODEL``: which layers, or groups of units, can be pruned how far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.flags import (
    CustomOpsFlag,
    ExcludeFlag,
    InputsFlag,
    JobsFlag,
    OnlyFlag,
    SampleAxisFlag,
    SeedFlag,
    SequenceLengthFlag,
    TextFlag,
    TokenizerFlag,
)
from onnxprune.cli.help import EverydayHelp, HelpAllFlag
from onnxprune.cli.outputs import check_outputs
from onnxprune.errors import RecipeError
from onnxprune.recipe.fields import is_synthetic

_CalibrationFlag = Annotated[
    Path | None,
    typer.Option(
        help="Inputs, on which the error of the outputs is measured: forms as for prune; or synthetic.",
        show_default=False,
    ),
]
_EvalDataFlag = Annotated[
    Path | None, typer.Option(help="Labelled inputs: measure a metric instead.", show_default=False)
]
_MetricFlag = Annotated[
    str | None, typer.Option(help="accuracy, mse, perplexity, ... or module:function.", show_default=False)
]
_PlotFlag = Annotated[Path | None, typer.Option(help="Draw the curves into a .png, .svg or .pdf.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sensitivity", cls=EverydayHelp, help=ABOUT["sensitivity"])(sensitivity)


def sensitivity(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)],
    calibration: _CalibrationFlag = None,
    eval_data: _EvalDataFlag = None,
    metric: _MetricFlag = None,
    inputs: InputsFlag = None,
    tokenizer: TokenizerFlag = None,
    sequence_length: SequenceLengthFlag = None,
    text: TextFlag = "auto",
    sample_axis: SampleAxisFlag = [],  # noqa: B006
    custom_ops: CustomOpsFlag = [],  # noqa: B006
    structure: Annotated[str, typer.Option(help="weights (by layer) or channels (by group of units).")] = "weights",
    criterion: Annotated[str, typer.Option(help="What goes first.")] = "magnitude",
    levels: Annotated[str, typer.Option(help="Shares to try [0.3,0.5,... to 0.95].", show_default=False)] = "",
    exclude: ExcludeFlag = [],  # noqa: B006
    only: OnlyFlag = [],  # noqa: B006
    seed: SeedFlag = 0,
    jobs: JobsFlag = None,
    plot: _PlotFlag = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plot.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    help_all: HelpAllFlag = False,
) -> None:
    """Show what each layer can lose."""
    from onnxprune.pipeline.scan import sensitivity as scan
    from onnxprune.report.sensitivity import check_plot, print_scan, write_plot

    if plot is not None:
        check_plot(plot)
        read = {
            "the model": model,
            "the data of --calibration": None if is_synthetic(calibration) else calibration,
            "the data of --eval-data": eval_data,
        }
        check_outputs({**read, "the data of --inputs": inputs}, None, {"--plot": plot}, force=force)
    reading: Any = {
        "sample_axis": sample_axis, "tokenizer": tokenizer, "sequence_length": sequence_length, "text": text
    }  # fmt: skip
    with stages(str(model)) as tell:
        curves = scan(
            model, calibration=calibration, eval_data=eval_data, metric=metric, levels=_numbers(levels), progress=tell,
            inputs=inputs, custom_ops=custom_ops,
            reading=reading,
            structure=structure, criterion=criterion, exclude=exclude,
            only=only, seed=seed, jobs=jobs,
        )  # fmt: skip
        if plot is not None:
            tell("plot")
            write_plot(curves, plot, model.name)
    if json:
        print_json("sensitivity", {"model": str(model), **curves.as_dict()})
    else:
        print_scan(console, str(model), curves)


def _numbers(text: str) -> tuple[float, ...] | None:
    try:
        return tuple(float(part) for part in text.split(",")) if text else None
    except ValueError:
        raise RecipeError(f"--levels: shares between 0 and 1, such as 0.3,0.5,0.8 (not {text!r})") from None
