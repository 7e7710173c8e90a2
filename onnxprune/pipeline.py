"""A Recipe becomes a list of passes and is run. The only place that knows the order.

load -> normalise -> analyse -> score -> select -> remove or mask -> tidy -> verify -> deliver (pack, limits) -> save

With retraining, the steps from normalise to tidy are repeated, with a training after each (retraining.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune import delivery, limits, model_io
from onnxprune.errors import RecipeError
from onnxprune.planning import Plan, apply_plan, make_plan, masked_twin, prepare, shortfall
from onnxprune.recipe import Recipe, make_recipe
from onnxprune.record import FileId, Record
from onnxprune.scoring import find_criterion
from onnxprune.structure.rewrite import Kept
from onnxprune.verification import Verdict, verify

__all__ = ["AnyData", "AnyModel", "Clock", "Plan", "Progress", "Result", "make_plan", "prepare", "prune", "save"]

AnyModel = str | Path | onnx.ModelProto | ir.Model
AnyData = str | Path | Mapping[str, npt.NDArray[Any]]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """A pruned model and what is known of it.

    Attributes:
        model: The pruned model.
        recipe: The settings of the run.
        sparsity: The share of prunable parameters that are zero or gone.
        prunable: The number of prunable parameters.
        gone: How many of them are zero or gone.
        kept: The kept indices, by constant and axis, of constants that were cut.
        renamed: Copies of constants that the output has, with the names of their sources.
        verdict: What was measured; None after a dry run.
        dead: How many dead units went beside what was asked for.
        notes: What the user should know: a sparsity that is not reached and why, dead units that had to stay.
        seconds: Time by stage.
        delivery: What was done to the pruned model before it is written: `model` is what came out.
        retraining: Each iteration of pruning and retraining as plain data: what it aimed at, reached, and its epochs.
    """

    model: ir.Model
    recipe: Recipe
    sparsity: float
    prunable: int
    gone: int
    kept: Kept
    renamed: Mapping[str, str]
    verdict: Verdict | None
    dead: int = 0
    notes: tuple[str, ...] = ()
    source: FileId = field(default_factory=FileId)
    seconds: Mapping[str, float] = field(default_factory=dict)
    delivery: delivery.Delivery | None = None
    retraining: tuple[Mapping[str, Any], ...] = ()

    @property
    def figures(self) -> dict[str, Any]:
        """The figures as plain data."""
        own: dict[str, Any] = {
            "sparsity": self.sparsity,
            "prunable_parameters": self.prunable,
            "gone_parameters": self.gone,
            "dead_units": self.dead,
            "notes": list(self.notes),
        }
        if self.retraining:
            own["retraining"] = list(self.retraining)
        measured = {} if self.verdict is None else self.verdict.as_dict()
        return own | measured | ({} if self.delivery is None else self.delivery.as_dict())

    def record(self, output: FileId | None = None) -> Record:
        """Return the record of the run."""
        return Record(
            source=self.source,
            output=output or FileId(),
            recipe=self.recipe.model_dump(mode="json"),
            kept={n: {str(a): i.tolist() for a, i in axes.items()} for n, axes in self.kept.items()},
            renamed=dict(self.renamed),
            figures=self.figures,
        )


def prune(
    model: AnyModel,
    recipe: Recipe | None = None,
    *,
    verification: bool = True,
    latency: bool = True,
    data: AnyData | None = None,
    eval_data: AnyData | None = None,
    metric: str | None = None,
    calibration: str | Path | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Prune a model.

    Args:
        model: A path, an onnx.ModelProto or an onnx_ir.Model. It is never changed.
        recipe: All settings; or give them by keyword: ``prune(model, sparsity=0.9, structure="channels")``.
        verification: Measure the result in ONNX Runtime; without it nothing is known of it.
        latency: Measure the latency ratio as part of the verification.
        data: What to retrain on (``retrain=True``): a path, ``module:function``, or arrays by name.
        eval_data: Labelled inputs, to measure a metric before and after: an .npz; when retraining, anything that
            ``data`` may be, and by default the share of them that is held out.
        metric: ``accuracy``, ``top5`` or ``mse``, when retraining also ``agreement`` or ``module:function``; by default
            the first that fits the data.
        calibration: An .npz of inputs that ``quantize="int8"`` takes ranges from, by default those of ``eval_data``.
        checkpoint: Folder that a retraining run keeps its state in.
        resume: Go on with the run that the checkpoint holds; what it holds is replaced otherwise.
        progress: Called with the name of each stage.
        **settings: Fields of `Recipe`; those that hold settings of their own also take a dict of them.

    Returns:
        The pruned model with its record and figures.

    Raises:
        ModelError: The model cannot be read.
        RecipeError: A setting is wrong, or the loss of the training is no longer a number.
        DataError: The data do not fit the model.
        NothingToPrune: No weight of the model may be pruned under this recipe.
        VerificationError: The result is not what was promised.
    """
    recipe = recipe or make_recipe(**settings)
    find_criterion(recipe.criterion)
    has_metric = eval_data is not None or recipe.retrain is not None
    limits.ensure_measured(recipe.require, verification=verification, latency=latency, metric=has_metric)
    _check_data(recipe, data, eval_data, resume)
    clock = Clock(progress)
    original = clock("load", lambda: model_io.load_any(model))
    if recipe.retrain is None:
        assert not isinstance(eval_data, Mapping)
        check = partial(verify, original, seed=recipe.seed, latency=latency, eval_data=eval_data, metric=metric)
        result = _prune_once(original, recipe, clock, check if verification else None)
    else:
        from onnxprune.retraining import Wishes, for_delivery, prune_and_retrain  # PyTorch, which only this needs

        assert data is not None
        folder = None if checkpoint is None else Path(checkpoint)
        wishes = Wishes(data, eval_data, metric, folder, resume, verification, latency)
        result = prune_and_retrain(original, recipe, wishes, clock)
        eval_data, metric = for_delivery(eval_data, metric)
    assert not isinstance(eval_data, Mapping)
    result = replace(result, source=_file_id(original))
    finish = partial(delivery.deliver, original, result, latency=latency, eval_data=eval_data, metric=metric)
    finish = partial(finish, calibration=calibration)
    delivered: Result = clock("deliver", finish)
    return delivered


def _check_data(recipe: Recipe, data: AnyData | None, eval_data: AnyData | None, resume: bool) -> None:
    """Refuse data that nothing would read, and retraining on nothing.

    Raises:
        RecipeError: See above.
    """
    if recipe.retrain is not None:
        if data is None:
            raise RecipeError("--retrain needs the data to train on: give --data")
        return
    if data is not None:
        raise RecipeError("--data is what --retrain trains on: give both, or --eval-data to measure a metric")
    if resume:
        raise RecipeError("--resume goes on with an interrupted run of --retrain: give that too")
    if isinstance(eval_data, Mapping):
        raise RecipeError("--eval-data is the path of an .npz file where nothing is retrained")


def _prune_once(original: ir.Model, recipe: Recipe, clock: Clock, check: Callable[..., Verdict] | None) -> Result:
    """Prune without training. ``check`` compares the result with its masked twin."""
    structure = clock("analyse", lambda: prepare(original.clone()))
    plan = clock("select", lambda: make_plan(structure, recipe))
    pruned = structure.model
    done = clock("prune", lambda: apply_plan(plan, recipe))
    verdict = None
    if check is not None:
        masked = clock("mask", lambda: masked_twin(original, plan.removed)) if plan.removed.any() else done.masked
        verdict = clock("verify", lambda: check(pruned, masked))
    return Result(
        model=pruned,
        recipe=recipe,
        sparsity=plan.sparsity,
        prunable=plan.prunable,
        gone=plan.gone,
        kept=done.kept,
        renamed=done.renamed,
        verdict=verdict,
        dead=done.dead,
        notes=tuple(note for note in (shortfall(recipe, plan.sparsity), *done.left) if note),
        seconds=clock.seconds,
    )


def save(result: Result, path: str | Path, *, force: bool = False, record: str | Path | None = None) -> FileId:
    """Write the pruned model, and its record where a path for it is given; each appears whole or not at all.

    Raises:
        ModelError: The output is the input, exists (without ``force``), or cannot be written.
    """
    delivery.write(result, path, force=force)
    output = FileId(file=str(path), sha256=model_io.sha256(path))
    if record is not None:
        result.record(output).save(record)
    return output


def _file_id(model: ir.Model) -> FileId:
    source = model_io.source_of(model)
    if source is None:
        return FileId()
    return FileId(file=str(source.path), sha256=model_io.sha256(source.path))


class Clock:
    """Runs stages, notes how long each took, tells who listens."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, stage: Callable[[], Any]) -> Any:
        if self.progress is not None:
            self.progress(name)
        start = time.perf_counter()
        result = stage()
        self.seconds[name] = time.perf_counter() - start
        return result
