"""`--recover align`: blocks of the pruned network are trained to give what those of the dense one give, without labels.

The closed forms come first. Then each block of the stream is trained by itself on what the pruned network gives it
(alignment.py), and at last the whole on the values at all cuts between blocks. Where channels of such a value were
removed, those that are left are compared. Numbers stay only where the error on held-back inputs falls.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxprune.errors import ModelError, RecipeError
from onnxprune.recipe.fields import Effort
from onnxprune.recovery.reconstruct import State, Step, as_before_pruning, recover_layers
from onnxprune.recovery.registry import model_method
from onnxprune.runtime.stream.gather import Batches

BATCH = 16

STEPS: Mapping[Effort, tuple[int, int, float, int, int]] = {
    "low": (40, 1200, 4.6e11, 5, 4),
    "medium": (40, 1200, 4.6e11, 5, 4),
    "high": (40, 4800, 9e12, 10, 20),
}
"""By effort, the fields of `alignment.Plan`; low by name takes those of medium.

9e12 multiply-adds are some 23 minutes of one core. Small networks end sooner.
"""


@model_method(
    "align",
    needs="calibration",
    judge="of the model",
    source="Li et al. 2021, BRECQ, section 3.2; Romero et al. 2015, FitNets, eq. 3; Kingma and Ba 2015, Adam",
    needs_pytorch=True,
    holds_back=True,
)
def align(run: State, method: str) -> None:
    """min sum_cuts |F_dense - F_pruned|^2 / Var[F_dense] by Adam, block by block, then the whole; after least squares.

    Raises:
        RecipeError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise RecipeError("--recover align needs PyTorch, which is not installed: pip install 'onnxprune[retrain]'.")
    from onnxprune.recovery.alignment import Alignment, Plan

    if any(step.method == method for step in run.steps):
        return  # a second alignment of the same cut would only be a longer first one
    if not run.steps:
        recover_layers(run, "least-squares")
    used, held = (Batches.of(run.dense, inputs, BATCH) for inputs in (run.inputs, run.held))

    def fit(nodes: Sequence[ir.Node], some: Batches) -> None:
        as_before_pruning(run, nodes)  # so that the fit is not compared with one that saw what is held back
        recover_layers(replace(run, samples=some, steps=[]), "least-squares", only=nodes)

    try:
        work = Alignment(
            run.dense, run.pruned, run.kept, used, held, run.seed, Plan(*STEPS[run.effort]), run.progress, fit
        )
        for tried in work.run():
            run.steps.append(Step(tried.name, method, tried.before, tried.after, tried.kept, tried.detail))
    except ModelError as error:  # an operator that the bridge does not know: what was fitted before stays
        run.skipped["alignment"] = str(error).rstrip(".")
