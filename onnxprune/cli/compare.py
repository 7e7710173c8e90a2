"""``onnxprune compare A B``: two models side by side, latency measured in alternation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

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
from onnxprune.errors import OnnxPruneError, VerificationError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", help="Compare two models: outputs, size, multiply-adds, latency.")(compare)


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
) -> None:
    """Compare two models."""
    from onnxprune import model_io
    from onnxprune.data.readers import open_data
    from onnxprune.data.text import check_text
    from onnxprune.data.working import give_inputs
    from onnxprune.recipe.recipe import make_recipe
    from onnxprune.report.console import print_comparison
    from onnxprune.runtime.libraries import custom_operators
    from onnxprune.verification.verdict import sample_inputs, verify

    with custom_operators(custom_ops), stages(f"{a} and {b}") as tell:
        tell("measure")
        how = {"sample_axis": sample_axis, "input_shape": input_shape, "tokenizer": tokenizer}
        reading = make_recipe(sparsity=0, reading={**how, "sequence_length": sequence_length, "text": text}).reading
        check_text(reading, (eval_data, inputs))
        before = model_io.load(a)
        give_inputs(before, inputs, reading)
        data = None if eval_data is None else open_data(before, eval_data, reading)
        after = model_io.load(b)
        with _saying(a):
            sample_inputs(before, seed=seed, eval_data=data)  # refused here: it is the first model that does not run
        with _saying(b, VerificationError):
            verdict = verify(before, after, seed=seed, eval_data=data, metric=metric)
        for model in (before, after):
            model_io.ensure_unchanged(model)
    if json:
        content = verdict.as_dict()
        for name in ("removed_vs_masked", "unproved"):
            del content[name]
        print_json("compare", {"a": str(a), "b": str(b), **content})
    else:
        print_comparison(console, str(a), str(b), verdict)


@contextmanager
def _saying(model: Path, kind: type[OnnxPruneError] = OnnxPruneError) -> Iterator[None]:
    """Name the model in errors of a kind."""
    try:
        yield
    except kind as error:
        if str(model) in str(error):
            raise
        raise type(error)(f"'{model}': {error}") from error
