"""``onnxprune compare A B``: two models side by side, latency measured in alternation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.cli.commands import ABOUT
from onnxprune.cli.console import console, print_json, stages
from onnxprune.cli.flags import (
    CustomOpsFlag,
    InputsFlag,
    InputShapeFlag,
    SampleAxisFlag,
    SeedFlag,
    SequenceLengthFlag,
    TextFlag,
    TokenizerFlag,
)
from onnxprune.cli.help import EverydayHelp, HelpAllFlag


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", cls=EverydayHelp, help=ABOUT["compare"])(compare)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.onnx", help="The reference.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B.onnx", help="The model compared with it.", show_default=False)],
    eval_data: Annotated[
        Path | None, typer.Option(help="Labelled inputs to measure the metric on.", show_default=False)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="accuracy, top5, mse, agreement, perplexity, cosine, spearman or module:function.", show_default=False
        ),
    ] = None,
    inputs: InputsFlag = None,
    tokenizer: TokenizerFlag = None,
    sequence_length: SequenceLengthFlag = None,
    text: TextFlag = "auto",
    sample_axis: SampleAxisFlag = [],  # noqa: B006
    input_shape: InputShapeFlag = [],  # noqa: B006
    custom_ops: CustomOpsFlag = [],  # noqa: B006
    seed: SeedFlag = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    help_all: HelpAllFlag = False,
) -> None:
    """Compare two models."""
    from onnxprune.pipeline.compare import compare as compare_models
    from onnxprune.report.console import print_comparison

    with stages(f"{a} and {b}") as tell:
        tell("measure")
        reading: Any = {
            "sample_axis": sample_axis, "input_shape": input_shape, "tokenizer": tokenizer,
            "sequence_length": sequence_length, "text": text,
        }  # fmt: skip
        verdict = compare_models(
            a, b, eval_data=eval_data, metric=metric, inputs=inputs, reading=reading, custom_ops=custom_ops, seed=seed
        )
    if json:
        content = verdict.as_dict()
        for name in ("removed_vs_masked", "unproved"):
            del content[name]
        print_json("compare", {"a": str(a), "b": str(b), **content})
    else:
        print_comparison(console, str(a), str(b), verdict)
