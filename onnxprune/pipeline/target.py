"""Targets that decide how much goes: a share of the latency, multiply-adds or bytes, or a drop of the metric.

A search (search.py) tries sparsities; every try is a run of the recipe, measured as the result will be. Budgets are
tried in one step, without training, recovery and verification, which change neither shapes nor the number of zeros;
later steps find sparsities of their own (aim.py). For a drop, all steps, training and recovery belong to the try.
Units go in the order of importance per cost (selection/by_cost.py), so that one number is left to find: the sparsity,
or for a budget the share of its cost that units save, which is near what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.data.readers import AnyData, open_data
from onnxprune.errors import DataError, OnnxPruneError, VerificationError
from onnxprune.graph import size
from onnxprune.pipeline.deliver import ensure_wanted, written_bytes
from onnxprune.pipeline.result import Reached, Result, measured_figures
from onnxprune.pipeline.search import Outcome, Try, highest_within, nearest_ratio
from onnxprune.pipeline.task import takes_of_cost
from onnxprune.pipeline.trace import by_reason, first_of
from onnxprune.recipe.flag import flag_name
from onnxprune.recipe.recipe import Recipe
from onnxprune.runtime.jobs import count_jobs, each
from onnxprune.verification.evaluate import measured_metric, start_meter
from onnxprune.verification.verdict import sample_inputs

Figure = Callable[["Result"], float]

_AGAIN, _NEAR, _HAIR = 3, 1.2, 1e-3  # a result beyond such a budget: runs below it, if it is near, by a little more


class Run(Protocol):
    """One run of a recipe: whole, or without training and verification."""

    def __call__(self, recipe: Recipe, *, whole: bool) -> Result: ...


def reach(
    original: ir.Model, recipe: Recipe, run: Run, silent: Run, eval_data: Any, metric: str | None,
    tell: Callable[[str], None] | None, *, at: float | None = None,
) -> Result:  # fmt: skip
    """Look for the sparsity that gives what the recipe's target asks for; return the result at it.

    Args:
        original: The model before.
        recipe: With a target.
        run: Runs a recipe on the original.
        silent: The same without progress, for other processes.
        eval_data: What a drop is measured on, and what models run on for which no random inputs are found.
        metric: The metric asked for.
        tell: Called with the name of each try.
        at: The sparsity that an interrupted run had found.

    Raises:
        VerificationError: The target cannot be reached; the sentence says what can.
        DataError: The data do not fit the model.
    """
    search = _Search.of(original, recipe, run, silent, eval_data, metric, tell)
    result, reached = _within(search, search.wanted, at, _AGAIN)
    return replace(result, recipe=recipe, target=reached, notes=(reached.note, *result.notes))


def _within(search: _Search, wanted: float, at: float | None, again: int) -> tuple[Result, Reached]:
    """The result of a search, and how near it is to what is wanted; searches below where it has more than that."""
    outcome = search.find() if at is None else Outcome(Try(at, wanted), ())
    best = outcome.best
    if best is None:
        raise VerificationError(_unreachable(search.target, wanted, outcome, search.obstacles))
    result = search.result(best.sparsity)
    if search.target == "max_drop" and result.gone == 0:
        raise VerificationError(_unreachable(search.target, wanted, outcome, search.obstacles))
    value = measured_figures(result).get(_MEASURED_AS[search.target], best.value)
    if is_limit(search.target) and value > wanted and search.recipe.retrain is None:
        if again == 0 or value > _NEAR * wanted:
            raise VerificationError(_exceeded(search.target, wanted, value, result))
        return _within(search.below(value / wanted), wanted, at, again - 1)  # other numbers pack a little worse
    if takes_of_cost(search.recipe):
        tries = tuple(replace(t, sparsity=search.gone.get(t.sparsity, t.sparsity)) for t in outcome.tries)
        return result, Reached(search.target, wanted, value, result.sparsity, tries)
    sparsity = result.steps[-1]["wanted"] if result.steps and search.recipe.iterations > 1 else best.sparsity
    return result, Reached(search.target, wanted, value, sparsity, outcome.tries)


@dataclass(frozen=True)
class _Search:
    """A search of one recipe.

    Attributes:
        recipe: With its target.
        target: Which.
        wanted: What is asked for.
        run: Runs a recipe.
        silent: The same without progress, for other processes.
        figure: What is measured of each try.
        tell: Called with the name of each try.
        figures: What was measured, by the parameters gone and all shapes: two sparsities may come to the same units.
        gone: The sparsity that came out, by that asked for.
        results: Of tries that are whole runs, by sparsity.
        obstacles: Why nothing could be packed, where it should be.
    """

    recipe: Recipe
    target: str
    wanted: float
    run: Run
    silent: Run
    figure: Figure
    tell: Callable[[str], None] | None
    figures: dict[tuple[Any, ...], float] = field(default_factory=dict)
    gone: dict[float, float] = field(default_factory=dict)
    results: dict[float, Result] = field(default_factory=dict)
    obstacles: set[str] = field(default_factory=set)

    @staticmethod
    def of(
        original: ir.Model, recipe: Recipe, run: Run, silent: Run, eval_data: Any, metric: str | None,
        tell: Callable[[str], None] | None,
    ) -> _Search:  # fmt: skip
        """Prepare what is measured."""
        target = recipe.target
        assert target is not None
        trained = target == "max_drop" and recipe.retrain is not None
        figure = _drop_of_verdict if trained else figure_of(original, recipe, eval_data, metric)
        return _Search(recipe, target, float(getattr(recipe, target)), run, silent, figure, tell)

    def below(self, excess: float) -> _Search:
        """The same search for so many times less, and a hair more."""
        wanted = self.wanted / excess * (1 - _HAIR)
        return replace(self, wanted=wanted, recipe=self.recipe.model_copy(update={self.target: wanted}))

    @property
    def trained(self) -> bool:
        """Whether a training belongs to each try."""
        return self.target == "max_drop" and self.recipe.retrain is not None

    def find(self) -> Outcome:
        """Run the search."""
        recipe, least = self.recipe, self.recipe.parts.sets or 0.0
        if self.target == "max_drop":
            return highest_within(self.measure_each, self.wanted, least=least, ahead=count_jobs())
        changed = recipe.quantize != "no" or (self.target == "target_size" and recipe.pack != "no") or least > 0
        whole = None if changed else 1.0
        under, of_cost = is_limit(self.target), takes_of_cost(recipe)
        return nearest_ratio(self.measure, self.wanted, least=least, whole=whole, under=under, of_cost=of_cost)

    def measure_each(self, sparsities: Sequence[float]) -> list[float | None]:
        """Several tries, side by side where that is asked for; None for one but the first that failed."""
        if len(sparsities) == 1:
            return [self.measure(sparsities[0])]
        if self.tell is not None:
            self.tell(f"{flag_name(Recipe, self.target)}: sparsities {', '.join(f'{s:.4f}' for s in sparsities)}")
        values: list[float | None] = [None] * len(sparsities)
        elsewhere = replace(self, run=self.silent, tell=None, results={})
        for number, (value, result, error) in each(_tried, elsewhere, sparsities):
            if error is not None and number == 0:
                raise error
            values[number] = value
            if result is not None:
                self.results[sparsities[number]] = result
        return values

    def measure(self, sparsity: float) -> float:
        """One try."""
        if self.tell is not None:
            what = "share saved" if takes_of_cost(self.recipe) else "sparsity"
            self.tell(f"{flag_name(Recipe, self.target)}: {what} {sparsity:.4f}")
        update: dict[str, Any] = {"sparsity": sparsity, "require": ()}
        if not self.trained:
            update["retrain"] = None
        if self.target != "max_drop":
            update |= {"recover": ("no",), "iterations": 1, "initial_sparsity": 0.0}  # other numbers, but as many
        result = self.run(self.recipe.model_copy(update=update), whole=self.trained)
        self.gone[sparsity] = result.sparsity
        if self.trained:
            self.results[sparsity] = result
            return self.figure(result)
        if result.delivery is not None and result.delivery.packing is not None:
            self.obstacles.update({result.delivery.packing.obstacle} - {""})
        key = (result.gone, *(str(v.shape) for v in result.model.graph.initializers.values()))
        if key not in self.figures:
            self.figures[key] = self.figure(result)
        return self.figures[key]

    def result(self, sparsity: float) -> Result:
        """The result at the sparsity that was found, within the limits of the recipe."""
        if sparsity not in self.results:
            return self.run(self.recipe.model_copy(update={"sparsity": sparsity}), whole=True)
        result = self.results[sparsity]
        ensure_wanted(replace(result, recipe=self.recipe))
        return result


def _exceeded(target: str, wanted: float, value: float, result: Result) -> str:
    untiled = {} if result.delivery is None else result.delivery.untiled
    why = "".join(f"; {first_of(names)}: {reason}" for reason, names in by_reason(untiled).items())
    return f"{flag_name(Recipe, target)} {wanted:g} was not reached: what came out has {value:.3g}{why}"


def _tried(search: _Search, sparsity: float) -> tuple[float | None, Result | None, OnnxPruneError | None]:
    """One try in another process: its value, the result where the try is a whole run, and why there is none."""
    try:
        return search.measure(sparsity), search.results.get(sparsity), None
    except OnnxPruneError as error:
        return None, None, error


def _unreachable(target: str, wanted: float, outcome: Outcome, obstacles: set[str]) -> str:
    flag = f"{flag_name(Recipe, target)} {wanted:g}"
    if target == "max_drop":
        least = min((t for t in outcome.tries if not t.value <= wanted), key=lambda t: t.sparsity)
        return f"{flag} allows no pruning: a sparsity of {least.sparsity:.2%} costs {least.value:.4g} already"
    best = min(outcome.tries, key=lambda t: t.value)
    why = "".join(f"; nothing could be packed, since {obstacle}" for obstacle in sorted(obstacles))
    return (
        f"{flag} cannot be reached: the least that this recipe gives is {best.value:.3g}, with all gone that can "
        f"(--allow-inexact, --round-to, --quantize and --pack may allow more{why})"
    )


# --- what is measured


def figure_of(original: ir.Model, recipe: Recipe, eval_data: AnyData | None, metric: str | None) -> Figure:
    """Return what measures the figure of the recipe's target, a share of the original's, of a result.

    Raises:
        DataError: The data that it needs are not there, or do not fit.
    """
    assert recipe.target is not None
    return _FIGURES[recipe.target](original, recipe, eval_data, metric)


def is_limit(target: str) -> bool:
    """Whether a target is a budget that must not be exceeded; of a latency, measured with noise, the nearest counts."""
    return target in ("target_macs", "target_size")


def _latency(original: ir.Model, recipe: Recipe, eval_data: AnyData | None, metric: str | None) -> Figure:
    feeds = runtime.one_sample(original, seed=recipe.seed, instead=_some_inputs(original, recipe, eval_data))

    def latency(result: Result) -> float:
        return runtime.measure_models(original, result.model, feeds, settled=True, error=VerificationError).ratio

    return latency


def _some_inputs(original: ir.Model, recipe: Recipe, eval_data: AnyData | None) -> runtime.Feeds:
    return sample_inputs(original, seed=recipe.seed, eval_data=eval_data)[0]


def _macs(original: ir.Model, recipe: Recipe, eval_data: AnyData | None, metric: str | None) -> Figure:
    feeds = runtime.one_sample(original, seed=recipe.seed, instead=_some_inputs(original, recipe, eval_data))

    def macs(model: ir.Model) -> int:
        shapes = runtime.concrete_shapes(model, feeds, size.counted_values(model))
        return size.figures(model, shapes).macs or 0

    before = max(macs(original), 1)
    return lambda result: macs(result.model) / before


def _size(original: ir.Model, recipe: Recipe, eval_data: AnyData | None, metric: str | None) -> Figure:
    before = model_io.size_of_files(original)
    return lambda result: written_bytes(result) / before


def _drop(original: ir.Model, recipe: Recipe, eval_data: AnyData | None, metric: str | None) -> Figure:
    if eval_data is None:
        raise DataError("--max-drop needs labelled data to measure the metric on: give --eval-data")
    meter, before = start_meter(original, runtime.make_session(original), open_data(original, eval_data), metric)

    def drop(result: Result) -> float:
        after = meter.read(result.model, runtime.make_session(result.model, error=VerificationError))
        return measured_metric(meter, before, after).drop

    return drop


def _drop_of_verdict(result: Result) -> float:
    figures = measured_figures(result)
    if "metric_drop" not in figures:
        raise DataError("--max-drop: no metric was measured, since nothing is held out of --data: give --eval-data")
    return figures["metric_drop"]


_FIGURES: dict[str, Callable[[ir.Model, Recipe, AnyData | None, str | None], Figure]] = {
    "target_latency": _latency, "target_macs": _macs, "target_size": _size, "max_drop": _drop,
}  # fmt: skip
_MEASURED_AS = {"target_latency": "latency", "target_macs": "macs", "target_size": "size", "max_drop": "metric_drop"}
