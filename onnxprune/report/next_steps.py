"""What to do next with a result: the end of the report, as commands that go on from the settings of the run.

    for step in next_steps(result, Files("net.onnx", "net.pruned.onnx")):
        print(step.why, step.command, sep=": ")

What a step needs and the run had not (inputs, labels) stands in its command under the name that messages use:
``inputs.npz``, ``labelled.npz``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from onnxprune.errors import RecipeError
from onnxprune.pipeline.result import RUINED, measured_figures
from onnxprune.recipe import requirements
from onnxprune.recipe.as_flags import flags_of
from onnxprune.recipe.fields import AMOUNTS
from onnxprune.recipe.recipe import make_recipe
from onnxprune.verification.requirements import missed_limits

if TYPE_CHECKING:
    from onnxprune.pipeline.result import Result

_A_POINT = 0.01  # of accuracy; of a metric above 1, this share of it
_TURNS = 5
_TRIED = (0.25, 0.5, 0.75)  # shares of the sparsity, where a limit was missed


@dataclass(frozen=True)
class Files:
    """The files of a run, as commands name them; None where there was none."""

    model: str
    output: str | None = None
    calibration: str | None = None
    eval_data: str | None = None
    data: str | None = None


@dataclass(frozen=True)
class NextStep:
    """A command, and what it is for."""

    why: str
    command: str


def next_steps(result: Result, files: Files) -> tuple[NextStep, ...]:
    """Return what to do next: repair what was lost or take more, measure what was not, check what was written."""
    missed = missed_limits([requirements.parse(text) for text in result.recipe.require], measured_figures(result))
    steps = [*(_within_limits(result, files) if missed else _better(result, files))]
    if files.output is not None:
        pair = shlex.join([files.model, files.output])
        if result.verdict is not None and result.verdict.metric is None:
            command = f"onnxprune compare {pair} --eval-data labelled.npz"
            steps.append(NextStep("Measure what it is worth, on labelled inputs", command))
        steps.append(NextStep("Check the file again, on any machine", f"onnxprune verify {pair}"))
    return tuple(steps)


def _within_limits(result: Result, files: Files) -> Iterator[NextStep]:
    shares = ",".join(f"{share * result.sparsity:.2g}" for share in _TRIED)
    flags = _flags(result, files, **{**dict.fromkeys(AMOUNTS), "require": (), "sparsity": result.sparsity})
    if flags is not None:
        flags[flags.index("--sparsity") + 1] = shares
        limits = [word for text in result.recipe.require for word in ("--pick", text)]
        command = shlex.join(["onnxprune", "sweep", files.model, *flags, *limits])
        yield NextStep("Look which smaller cut keeps the limits", command)


def _better(result: Result, files: Files) -> Iterator[NextStep]:
    """Steps that give back what was lost; where little was, the one that takes more."""
    figures, recipe = measured_figures(result), result.recipe
    metric = None if result.verdict is None else result.verdict.metric
    point = _A_POINT * max(1.0, abs(metric.before)) if metric is not None else 0.0
    if metric is not None and metric.drop <= point:
        amounts: dict[str, Any] = {**dict.fromkeys(AMOUNTS), "max_drop": point}
        yield from _again(
            "Take more, as long as the metric falls by at most a hundredth", "more", result, files, **amounts
        )
        return
    if metric is None and not figures.get("output_change", 0.0) >= RUINED:
        return
    if result.recovered is None and recipe.retrain is None:
        why = "Let the weights that stay make up for those that went: name inputs, no labels needed"
        yield from _again(why, "fitted", result, _with(files, calibration="inputs.npz"))
    elif recipe.retrain is None:
        if recipe.effort == "low" and recipe.recover == ("auto",):
            yield from _again("Take more time to repair it", "repaired", result, files, effort="medium")
        yield from _again("Train what is left", "trained", result, _with(files, data="labelled.npz"), retrain={})
    elif recipe.iterations == 1:
        yield from _again("Prune in steps, with training after each", "steps", result, files, iterations=_TURNS)
    elif recipe.retrain.epochs is not None or recipe.retrain.steps is None:
        longer = {**recipe.retrain.model_dump(exclude_defaults=True), "epochs": 3 * (recipe.retrain.epochs or 3)}
        yield from _again("Train longer", "longer", result, files, retrain=longer)


def _with(files: Files, **more: str) -> Files:
    return Files(**{**vars(files), **{name: getattr(files, name) or value for name, value in more.items()}})


def _again(why: str, ending: str, result: Result, files: Files, **changed: Any) -> Iterator[NextStep]:
    """The run with some settings changed, into a file of its own; nothing where the settings do not go together."""
    flags = _flags(result, files, **changed)
    if flags is not None:
        output = str(PurePath(files.model).with_suffix(f".{ending}.onnx"))
        yield NextStep(why, shlex.join(["onnxprune", files.model, "-o", output, *flags]))


def _flags(result: Result, files: Files, **changed: Any) -> list[str] | None:
    """The flags of the run's settings with some changed, and of its data; None where they do not go together."""
    settings = {**result.recipe.model_dump(exclude_defaults=True), **changed}
    try:
        recipe = make_recipe(**{name: value for name, value in settings.items() if value is not None})
    except RecipeError:
        return None
    flags = flags_of(recipe)
    if flags is None:
        return None
    data = {"--calibration": files.calibration, "--eval-data": files.eval_data}
    data["--data"] = files.data if recipe.retrain is not None else None
    return [*flags, *(word for flag, path in data.items() if path is not None for word in (flag, path))]
