"""A Recipe becomes a list of passes and is run. The only place that knows the order.

load -> [normalise -> analyse -> score -> select -> remove or mask -> removed == masked? -> recover] -> verify
     -> deliver (quantise, pack, limits) -> save

What is in brackets is one step (steps.py); there are as many as the recipe's iterations. With retraining a training
follows each (retraining.py).
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

from onnxprune import delivery, limits, model_io, retraining_state, targets
from onnxprune.calibration import AnyArrays, Calibration, read_calibration
from onnxprune.demands import check_method, recovery_methods
from onnxprune.errors import OnnxPruneError, RecipeError
from onnxprune.model_io.atomic import together
from onnxprune.planning import prepare
from onnxprune.recipe import Recipe, make_recipe
from onnxprune.record import FileId, Record, renamed_copies
from onnxprune.schedules import sparsities
from onnxprune.scoring.remembered import Memory
from onnxprune.steps import State, Steps, Trace
from onnxprune.structure.rewrite import Kept
from onnxprune.verification import Verdict, verify

__all__ = ["AnyData", "AnyModel", "Clock", "Progress", "Result", "prepare", "prune", "save"]

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
        steps: Each step as plain data: the sparsity that it aimed at and reached, what recovery did to each layer, what
            a scan of sensitivity found.
        untouched: Weights, or groups of units, that the pattern or the criterion did not fit, with the reason.
        blocks: Residual blocks that went, by the names of their sums in the original.
        retraining: Each iteration of pruning and retraining as plain data: what it aimed at, reached, and its epochs.
        target: What a target asked for and what came out; None where the recipe has none.
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
    steps: tuple[Mapping[str, Any], ...] = ()
    untouched: Mapping[str, str] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    retraining: tuple[Mapping[str, Any], ...] = ()
    target: targets.Reached | None = None

    @property
    def recovered(self) -> Mapping[str, Any] | None:
        """What recovery did after the last step; None where nothing was recovered."""
        return self.steps[-1].get("recovery") if self.steps else None

    @property
    def figures(self) -> dict[str, Any]:
        """The figures as plain data."""
        own: dict[str, Any] = {
            "sparsity": self.sparsity,
            "prunable_parameters": self.prunable,
            "gone_parameters": self.gone,
            "dead_units": self.dead,
            "notes": list(self.notes),
            "steps": list(self.steps),
            "untouched": dict(self.untouched),
            "blocks": list(self.blocks),
        }
        if self.retraining:
            own["retraining"] = list(self.retraining)
        if self.target is not None:
            own["target"] = self.target.as_dict()
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
            blocks=list(self.blocks),
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
    calibration: AnyArrays | None = None,
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
        calibration: Inputs, as an .npz or as arrays by name, with ``label`` where there are labels: for criteria that
            look at data, for a scan of sensitivity, for recovery (which they turn on), and for ``quantize="int8"``.
            By default criteria take them from ``data`` when retraining, int8 from ``eval_data``.
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
    check_method(recipe, calibration, retrains=recipe.retrain is not None)
    has_metric = eval_data is not None or recipe.retrain is not None
    limits.ensure_measured(recipe.require, verification=verification, latency=latency, metric=has_metric)
    _check_data(recipe, data, eval_data, resume)
    targets.check(recipe, metric=has_metric, verification=verification)
    clock = Clock(progress)
    original = clock("load", lambda: model_io.load_any(model))
    samples = None
    if calibration is not None:
        limit, seed = recipe.calibration_samples, recipe.seed
        samples = clock("read calibration", lambda: read_calibration(calibration, original, limit, seed))
    folder = None if checkpoint is None else Path(checkpoint)
    given = _Given(data, eval_data, metric, calibration, samples, folder, resume, verification, latency)
    if recipe.target is None:
        return _run(original, recipe, given, clock)
    at = _begin_search(recipe, given)
    try:
        run = partial(_try, original, given, clock)
        return targets.reach(original, recipe, run, eval_data, metric, progress, at=at)
    except OnnxPruneError:
        if folder is not None:
            retraining_state.forget_unless_started(folder)
        raise


def _begin_search(recipe: Recipe, given: _Given) -> float | None:
    """Prepare the checkpoint's folder for a search that trains; the sparsity to go on with, where it holds one.

    Raises:
        RecipeError: It holds another search.
    """
    folder = given.checkpoint
    if folder is None or recipe.retrain is None:
        return None
    if recipe.target == "max_drop":
        retraining_state.begin(folder, {"recipe": recipe.model_dump(mode="json")}, resume=given.resume)
        return None
    return retraining_state.held_sparsity(folder) if given.resume else None


def _try(original: ir.Model, given: _Given, clock: Clock, recipe: Recipe, *, whole: bool) -> Result:
    """One run of a search: without verification, unless it is whole."""
    if whole:
        if given.checkpoint is not None and recipe.target == "max_drop":
            folder = retraining_state.folder_of_try(given.checkpoint, recipe.sparsity)
            held = (folder / retraining_state.RUN).exists()
            given = replace(given, checkpoint=folder, resume=given.resume and held)
        return _run(original, recipe, given, clock)
    data, metric = delivery.measurable(given.eval_data, given.metric)
    given = replace(given, eval_data=data, metric=metric, verification=False, latency=False)
    return _run(original, recipe, given, Clock(None))


@dataclass(frozen=True)
class _Given:
    """What a run is given beside model and recipe; see `prune`.

    `samples` are those of `calibration`, read; `memory` is shared by the runs of a search, which begin alike.
    """

    data: AnyData | None
    eval_data: AnyData | None
    metric: str | None
    calibration: AnyArrays | None
    samples: Calibration | None
    checkpoint: Path | None
    resume: bool
    verification: bool
    latency: bool
    memory: Memory = field(default_factory=Memory)


def _run(original: ir.Model, recipe: Recipe, given: _Given, clock: Clock) -> Result:
    """Prune, with training or without, and bring the model into the form that is delivered."""
    latency = given.latency
    if recipe.retrain is None:
        assert not isinstance(given.eval_data, Mapping)
        eval_data, metric = given.eval_data, given.metric
        check = partial(verify, original, seed=recipe.seed, latency=latency, eval_data=eval_data, metric=metric)
        checks = {"verification": given.verification, "eval_data": eval_data}
        result = _prune_once(original, recipe, given, clock, check if given.verification else None, checks)
    else:
        from onnxprune.retraining import Wishes, prune_and_retrain  # PyTorch, which only this needs

        assert given.data is not None
        wishes = Wishes(
            given.data, given.eval_data, given.metric, given.samples, given.checkpoint, given.resume,
            given.verification, latency,
        )  # fmt: skip
        result = prune_and_retrain(original, recipe, wishes, clock)
        eval_data, metric = delivery.measurable(given.eval_data, given.metric)
    result = replace(result, source=_file_id(original))
    finish = partial(delivery.deliver, original, result, latency=latency, eval_data=eval_data, metric=metric)
    finish = partial(finish, calibration=given.calibration)
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


def _prune_once(
    original: ir.Model,
    recipe: Recipe,
    given: _Given,
    clock: Clock,
    check: Callable[..., Verdict] | None,
    checks: Mapping[str, Any],
) -> Result:
    """Prune without training, in as many steps as the recipe says.

    Args:
        check: Measures the result; None where nothing is verified.
        checks: How each step is checked: fields of `Steps`.
    """
    structure = clock("analyse", lambda: prepare(original.clone()))
    methods = recovery_methods(recipe, given=given.samples is not None)
    own: dict[str, Any] = {"methods": methods, "calibration": given.samples, "progress": clock.progress}
    steps = Steps.of(structure, recipe, memory=given.memory, **own, **checks)
    state = State(original)
    wanted = sparsities(recipe.schedule, recipe.iterations, recipe.sparsity, recipe.initial_sparsity)
    for number, sparsity in enumerate(wanted, 1):
        name = "prune" if len(wanted) == 1 else f"prune {number}/{len(wanted)}"
        step = partial(steps.prune, state, sparsity, number, structure if number == 1 else None)
        state = clock(name, step)
    if recipe.remove_dead:
        state, _ = clock("remove dead units", partial(steps.clean, state))
    verdict = None
    if check is not None:
        verdict = clock("verify", lambda: check(state.model, removed_vs_masked=state.trace.difference))
    return result_of(state.model, recipe, steps.prunable, state.trace, verdict, clock)


def result_of(
    model: ir.Model, recipe: Recipe, prunable: int, trace: Trace, verdict: Verdict | None, clock: Clock
) -> Result:
    """Return the result of a run whose steps left this trace."""
    copies = renamed_copies(model)
    names = {**trace.names, **copies}
    return Result(
        model=model,
        recipe=recipe,
        sparsity=trace.gone / prunable,
        prunable=prunable,
        gone=trace.gone,
        kept=trace.kept,
        renamed={copy: source for copy, source in names.items() if copy in trace.kept or copy in copies},
        verdict=verdict,
        dead=trace.dead,
        notes=tuple(trace.notes(recipe, trace.gone / prunable)),
        seconds=clock.seconds,
        steps=trace.steps,
        untouched=trace.untouched,
        blocks=trace.blocks,
    )


def save(result: Result, path: str | Path, *, force: bool = False, record: str | Path | None = None) -> FileId:
    """Write the pruned model, and its record where a path for it is given; each appears whole or not at all.

    Raises:
        ModelError: The output is the input, exists (without ``force``), or one of both cannot be written.
    """
    with together():
        output = FileId(file=str(path), sha256=delivery.write(result, path, force=force))
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
