"""Two models side by side: outputs, size, multiply-adds, a metric, and latency measured in alternation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune import model_io
from onnxprune.data.readers import AnyData, open_data
from onnxprune.data.text import check_text
from onnxprune.data.working import give_inputs
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.graph.dims import graph_inputs
from onnxprune.recipe.recipe import make_recipe
from onnxprune.runtime.libraries import custom_operators
from onnxprune.verification.verdict import Verdict, sample_inputs
from onnxprune.verification.verdict import verify as measure

if TYPE_CHECKING:
    from onnxprune.pipeline.run_inputs import AnyModel
    from onnxprune.recipe.settings import ReadingSettings
    from onnxprune.recipe.training import DataSettings


def compare(
    a: AnyModel,
    b: AnyModel,
    *,
    eval_data: AnyData | None = None,
    metric: str | None = None,
    inputs: AnyData | None = None,
    reading: DataSettings | ReadingSettings | None = None,
    custom_ops: Sequence[str | Path] = (),
    seed: int = 0,
) -> Verdict:
    """Compare two models with the same inputs and outputs.

    Args:
        a: The reference: a path, an onnx.ModelProto or an onnx_ir.Model.
        b: The model compared with it.
        eval_data: Labelled inputs to measure a metric on.
        metric: ``accuracy``, ``top5``, ``mse``, ``agreement`` or ``module:function``; by default the first that fits.
        inputs: Inputs that both run with; they take the place of random ones.
        reading: How data are read, such as ``{"sample_axis": ["state:1"]}``: fields of `DataSettings`.
        custom_ops: Libraries of custom operators that the models need.
        seed: Of random inputs.

    Raises:
        ModelError: A model cannot be read, or the reference does not run.
        VerificationError: The second model does not run, or has other inputs or outputs.
        DataError: The data do not fit.
        RecipeError: A setting is wrong.

    >>> import onnxprune
    >>> result = onnxprune.prune("models/digits_mlp.onnx", sparsity=0.5)
    >>> figures = onnxprune.compare("models/digits_mlp.onnx", result.model)
    >>> figures.after.nonzero_parameters < figures.before.nonzero_parameters
    True
    """
    with custom_operators(custom_ops):
        how = make_recipe(sparsity=0, reading=reading or {}).reading
        check_text(how, (eval_data, inputs))
        before = model_io.load_any(a)
        give_inputs(before, inputs, how)
        data = None if eval_data is None else open_data(before, eval_data, how)
        after = model_io.load_any(b)
        _ensure_same_names(before, after)
        with _saying(a):
            sample_inputs(before, seed=seed, eval_data=data)  # refused here: it is the first model that does not run
        with _saying(b, VerificationError):
            verdict = measure(before, after, seed=seed, eval_data=data, metric=metric)
        verdict = replace(verdict, after=replace(verdict.after, file_bytes=model_io.size_of_files(after)))
        for model in (before, after):
            model_io.ensure_unchanged(model)
        return verdict


def _ensure_same_names(a: ir.Model, b: ir.Model) -> None:
    """Check that two models take and give values of the same names, so that the same inputs run through both.

    Raises:
        VerificationError: They do not.
    """
    for what, ours, theirs in (
        ("inputs", graph_inputs(a), graph_inputs(b)),
        ("outputs", a.graph.outputs, b.graph.outputs),
    ):
        first, second = [str(value.name) for value in ours], [str(value.name) for value in theirs]
        if sorted(first) != sorted(second):
            raise VerificationError(
                f"the {what} differ: {first} in the first model, {second} in the second, so they cannot be compared"
            )


@contextmanager
def _saying(model: AnyModel, kind: type[OnnxPruneError] = OnnxPruneError) -> Iterator[None]:
    """Name the model's file in errors of a kind."""
    try:
        yield
    except kind as error:
        if not isinstance(model, (str, Path)) or str(model) in str(error):
            raise
        raise type(error)(f"'{model}': {error}") from error
