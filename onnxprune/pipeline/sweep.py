"""Many settings side by side: each is a whole run of its own, and what they measured is set beside each other.

swept = sweep("net.onnx", "net.sweep", sparsity=(0.3, 0.5), structure=("channels", "weights"), calibration="x.npz")
result = swept.pick("latency<=0.5")                       # the best model that keeps the limit
"""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnxprune import model_io
from onnxprune.data.readers import AnyData
from onnxprune.data.sets import identity
from onnxprune.errors import NothingToPrune, RecipeError, VerificationError
from onnxprune.pipeline.clock import Progress
from onnxprune.pipeline.preflight import check_limits, preflight
from onnxprune.pipeline.result import Result, measured_figures
from onnxprune.pipeline.run import prune
from onnxprune.pipeline.run_inputs import AnyModel, RunInputs
from onnxprune.pipeline.sweep_folder import key_of, leave_if_empty, prepare_folder, read_result, write_result
from onnxprune.pipeline.sweep_grid import Combination, combinations, shown_value
from onnxprune.pipeline.trials import COSTS, Trial, best_first, front
from onnxprune.pipeline.version import version
from onnxprune.recipe.as_flags import flags_of
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.requirements import Limit, parse
from onnxprune.recipe.settings import SweepSettings
from onnxprune.runtime.jobs import check_jobs, each
from onnxprune.verification.notebook import in_notebook

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class RunKeywords:
    """What each run of a sweep is given beside its recipe: as `prune` takes it."""

    data: AnyData | None = None
    eval_data: AnyData | None = None
    metric: str | None = None
    calibration: AnyData | None = None
    inputs: AnyData | None = None
    custom_ops: tuple[str | Path, ...] = ()

    def named(self) -> dict[str, Any]:
        """As arguments of `prune`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        model: The name of the model's file; "the model" for one in memory.
        trials: One for each combination of settings.
        left_out: Combinations that contradict themselves or the data, by label, with the reason.
        source: The model, for `pick`.
        keywords: What the runs were given, for `pick`.
    """

    model: str
    trials: tuple[Trial, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    source: AnyModel | None = field(default=None, repr=False)
    keywords: RunKeywords = field(default_factory=RunKeywords, repr=False)

    def __repr__(self) -> str:
        return f"<Sweep of {self.model}: {len(self.trials)} settings>"

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.varied))
        rows = [
            (*(shown_value(t.varied.get(name, "")) for name in names), t.failed or t.loss, *map(t.figures.get, COSTS))
            for t in self.trials
        ]
        heads = (*(name.replace("_", " ") for name in names), "loss", *COSTS)
        return in_notebook(f"{self.model}: {len(self.trials)} settings", heads, rows)

    def front(self, cost: str = "latency") -> tuple[Trial, ...]:
        """Return the trials on the Pareto front against ``latency``, ``size`` or ``macs``."""
        return front(self.trials, cost)

    def best(self, *limits: str) -> Trial | None:
        """Return the trial that loses least within limits such as ``latency<=0.5``; None where none keeps them."""
        return next(best_first(self.trials, [parse(limit) for limit in limits]), None)

    def pick(self, *limits: str, progress: Progress | None = None) -> Result:
        """Run the best setting within the limits again and return its model, of which the limits were measured anew.

        Raises:
            VerificationError: No setting keeps the limits.
        """
        return pick(self, [parse(limit) for limit in limits], progress=progress)[1]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        fronts = {cost: [t.label for t in self.front(cost)] for cost in ("latency", "size", "macs")}
        trials = [trial.as_dict() for trial in self.trials]
        return {"model": self.model, "trials": trials, "front": fronts, "left_out": dict(self.left_out)}


def sweep(
    model: AnyModel,
    folder: str | Path | None = None,
    *,
    jobs: int | None = None,
    data: AnyData | None = None,
    eval_data: AnyData | None = None,
    metric: str | None = None,
    calibration: AnyData | None = None,
    inputs: AnyData | None = None,
    custom_ops: Sequence[str | Path] = (),
    limits: Sequence[str] = (),
    progress: Progress | None = None,
    **settings: Unpack[SweepSettings],
) -> Sweep:
    """Prune a model with every combination of settings and measure each result. No model is written.

    Args:
        model: A path, an onnx.ModelProto or an onnx_ir.Model. It is never changed.
        folder: Where results are kept, by which an interrupted sweep goes on; None keeps none.
        jobs: How many runs at a time, as joblib has it: -1 is one a core; None is one, or what
            ``joblib.parallel_config`` says, so that a cluster of Dask or Ray can do the work. Latency is then measured
            beside other runs.
        data, eval_data, metric, calibration, inputs, custom_ops: As for `prune`.
        limits: What a model will be picked by, such as ``latency<=0.5``; refused at once where it is not measured.
        progress: Called with how many runs are done.
        **settings: Fields of `Recipe`. Those that say how much goes, and ``structure``, ``criterion``,
            ``allocation``, ``recover``, ``effort``, ``quantize`` and ``pack`` may have several values: a sequence, or
            a text with commas. Methods of recovery that go together are joined by ``+``.

    Raises:
        ModelError: The model cannot be read, or a result not be kept.
        RecipeError: A setting is wrong whatever the others are.
        DataError: The data do not fit the model.

    >>> import onnxprune
    >>> swept = onnxprune.sweep(
    ...     "models/digits_mlp.onnx", sparsity=(0.3, 0.6), structure="channels", eval_data="models/digits_mlp.npz"
    ... )
    >>> swept
    <Sweep of models/digits_mlp.onnx: 2 settings>
    >>> swept.best("size<=0.5").label
    '0.6'
    """
    keywords = RunKeywords(data, eval_data, metric, calibration, inputs, tuple(custom_ops))
    asked = RunInputs(data, eval_data, metric, calibration, inputs=inputs)
    chosen, left_out = combinations(settings, partial(preflight, inputs=asked))
    for combination in chosen:
        check_limits(map(parse, limits), combination.recipe, asked, flag="--pick")
    check_jobs(jobs)
    model_id = _hash(model)
    kept = None if folder is None else Path(folder)
    if kept is not None:
        prepare_folder(kept)
    try:
        trials = _trials(model, chosen, keywords, kept, _Keys.made_for(model_id, keywords), jobs, progress)
    finally:
        if kept is not None:
            leave_if_empty(kept)
    return Sweep(_name(model), trials, left_out, model, keywords)


def pick(swept: Sweep, limits: Sequence[Limit], *, progress: Progress | None = None) -> tuple[Trial, Result]:
    """Run the best setting of a sweep that keeps the limits again, with the limits as requirements; then the next.

    Raises:
        VerificationError: None keeps the limits.
    """
    assert swept.source is not None
    missed = ""
    for trial in best_first(swept.trials, limits):
        require = (*trial.recipe.require, *map(str, limits))
        try:
            recipe = trial.recipe.model_copy(update={"require": require})
            return trial, prune(swept.source, recipe, progress=progress, **swept.keywords.named())
        except VerificationError as error:
            missed = f"; {trial.label}, run again: {error}"
    wanted = " and ".join(map(str, limits))
    raise VerificationError(f"no model was written, because no setting of the sweep keeps {wanted}{missed}")


@dataclass(frozen=True)
class _Keys:
    """The names of results: a hash of all that decides one."""

    shared: Mapping[str, Any]  # what all runs have in common

    @classmethod
    def made_for(cls, model: str, keywords: RunKeywords) -> _Keys:
        """Read the data once, however many results there are."""
        data = (keywords.data, keywords.eval_data, keywords.calibration, keywords.inputs)
        return cls(
            {
                "version": version(),
                "model": model,
                "data": [identity(d) for d in data],
                "metric": keywords.metric,
                "ops": [str(p) for p in keywords.custom_ops],
            }
        )

    def of(self, recipe: Recipe) -> str:
        return key_of({**self.shared, "recipe": recipe.model_dump(mode="json")})


def _trials(
    model: AnyModel,
    chosen: Sequence[Combination],
    keywords: RunKeywords,
    folder: Path | None,
    keys: _Keys,
    jobs: int | None,
    progress: Progress | None,
) -> tuple[Trial, ...]:
    """The trials of all combinations: those that are kept, and the others by running them."""
    blank = [Trial(c.varied, c.recipe, command_of(model, c, keywords)) for c in chosen]
    names = [keys.of(trial.recipe) for trial in blank]
    trials: dict[int, Trial] = {}
    for number, (trial, name) in enumerate(zip(blank, names, strict=True)):
        content = None if folder is None else read_result(folder, name)
        if content is not None:
            trials[number] = replace(trial, **_measured(content))
    missing = [number for number in range(len(blank)) if number not in trials]
    for place, trial in each(_run, (model, keywords), [blank[number] for number in missing], jobs=jobs):
        number = missing[place]
        trials[number] = trial
        if folder is not None and not trial.failed:
            write_result(folder, names[number], _kept(trial))
        if progress is not None:
            progress(f"{len(trials)} of {len(blank)} done")
    return tuple(trials[number] for number in range(len(blank)))


def _run(shared: tuple[AnyModel, RunKeywords], trial: Trial) -> Trial:
    """Run one trial of a model; where its settings leave nothing to prune, or nothing is proved, it says so.

    Raises:
        DataError, ModelError: Something is wrong with what all trials share.
    """
    (model, keywords), start = shared, time.perf_counter()
    try:
        result = prune(model, trial.recipe, **keywords.named())
    except (NothingToPrune, RecipeError, VerificationError) as error:
        return replace(trial, failed=str(error), seconds=time.perf_counter() - start)
    verdict = result.verdict
    latency = None if verdict is None else verdict.latency
    return replace(
        trial,
        figures=measured_figures(result),
        metric=None if verdict is None or verdict.metric is None else asdict(verdict.metric),
        machine="" if latency is None else f"{latency.processor}, ONNX Runtime {latency.onnxruntime}",
        notes=result.notes,
        seconds=time.perf_counter() - start,
    )


_KEPT = ("figures", "metric", "machine", "notes", "seconds")


def _kept(trial: Trial) -> dict[str, Any]:
    return {**{name: getattr(trial, name) for name in _KEPT}, "settings": trial.recipe.model_dump(mode="json")}


def _measured(content: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: content[name] for name in _KEPT if name in content}
    return {**told, "notes": tuple(told.get("notes", ()))}


def _hash(model: AnyModel) -> str:
    if isinstance(model, (str, Path)):
        return model_io.sha256(model)
    content = model.SerializeToString(deterministic=True) if isinstance(model, onnx.ModelProto) else None
    return hashlib.sha256(content or model_io.to_bytes(model_io.load_any(model))).hexdigest()


def _name(model: AnyModel) -> str:
    return str(model) if isinstance(model, (str, Path)) else "the model"


# -- commands


def command_of(model: AnyModel, combination: Combination, keywords: RunKeywords) -> str:
    """Return the command line that prunes a model as a combination says; "" where no flags say it."""
    flags = flags_of(combination.recipe)
    if flags is None:
        return ""
    path = str(model) if isinstance(model, (str, Path)) else "MODEL.onnx"
    label = re.sub(r"[^A-Za-z0-9.+]+", "-", combination.label).strip("-")
    words = ["onnxprune", path, "-o", f"{path.removesuffix('.onnx')}.{label}.onnx", *flags]
    return shlex.join([*words, *_data_flags(keywords)])


def _data_flags(keywords: RunKeywords) -> list[str]:
    words: list[str] = []
    for name, value in keywords.named().items():
        flag = f"--{name.replace('_', '-')}"
        for part in value if isinstance(value, tuple) else (value,):
            if part is not None:
                words += [flag, str(part) if isinstance(part, (str, Path)) else f"{name.upper()}.npz"]
    return words
