"""Limits on what a run must reach: ``latency<=0.6``. Each is checked on a figure that was measured, never estimated.

limits = [parse("latency<=0.6"), parse("metric_drop<=0.01")]
check(limits, measured_figures(result))             # VerificationError names each figure that misses its limit
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxprune.errors import RecipeError, VerificationError

if TYPE_CHECKING:
    from onnxprune.pipeline import Result

FIGURES: Mapping[str, str] = {
    "latency": "time of one run, after / before, on one thread (measured in alternation)",
    "size": "bytes of the written file, after / before",
    "parameters": "parameters that the file holds, zeros included, after / before",
    "macs": "multiply-adds of one run, after / before",
    "metric_drop": "how much worse the metric on --eval-data is, in its own unit (0.01 is one point of accuracy)",
    "output_change": "largest change of an output on random inputs, relative to the largest output",
    "sparsity": "share of the prunable parameters that are zero or gone",
}
"""What a limit can name."""

LOWER_IS_BETTER = frozenset({"mse"})
"""Metrics of which less is better: a drop is a rise of them."""

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*([0-9.eE+-]+)\s*")


@dataclass(frozen=True)
class Limit:
    """One limit: a name of `FIGURES`, a comparison and a number."""

    name: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.bound:g}"

    def holds(self, measured: float) -> bool:
        """Whether a measured figure keeps the limit; NaN keeps none."""
        return _OPERATORS[self.comparison](measured, self.bound)


def parse(text: str) -> Limit:
    """Read a limit such as ``latency<=0.6``.

    Raises:
        RecipeError: It is not of this form, or names a figure that is not measured.
    """
    match = _FORM.fullmatch(text)
    try:
        bound = float(match[3]) if match else None
    except ValueError:
        bound = None
    if match is None or bound is None:
        raise RecipeError(f"a limit looks like 'latency<=0.6' (with <=, <, >= or >), not {text!r}")
    if match[1] not in FIGURES:
        raise RecipeError(f"there is no figure {match[1]!r} to limit; choose from {', '.join(FIGURES)}")
    return Limit(match[1], match[2], bound)


def ensure_measured(limits: Iterable[str], *, verification: bool, latency: bool, metric: bool) -> None:
    """Refuse, before any work is done, limits on figures that this run would not measure.

    Raises:
        RecipeError: Of a limit that could not be checked.
    """
    for limit in map(parse, limits):
        if not verification:
            raise RecipeError(f"--require {limit} cannot be checked without verification")
        if limit.name == "metric_drop" and not metric:
            raise RecipeError(f"--require {limit} needs labelled data to measure the metric on: give --eval-data")
        if limit.name == "latency" and not latency:
            raise RecipeError(f"--require {limit} cannot be checked where latency is not measured")


def measured_figures(result: Result) -> dict[str, float]:
    """What a run measured, by the names of `FIGURES`; a figure that was not measured is left out."""
    found = {"sparsity": result.sparsity}
    verdict = result.verdict
    if verdict is None:
        return found
    before, after = verdict.before, verdict.after
    found["output_change"] = verdict.output_change
    found["size"] = after.file_bytes / before.file_bytes
    if before.parameters:
        found["parameters"] = after.parameters / before.parameters
    if before.macs and after.macs is not None:
        found["macs"] = after.macs / before.macs
    if verdict.latency_ratio is not None:
        found["latency"] = verdict.latency_ratio
    if verdict.metric is not None:
        found["metric_drop"] = drop(verdict.metric.name, verdict.metric.before, verdict.metric.after)
    return found


def drop(metric: str, before: float, after: float) -> float:
    """By how much a metric got worse, in its own unit."""
    return after - before if metric in LOWER_IS_BETTER else before - after


def check(limits: Iterable[Limit], measured: Mapping[str, float]) -> None:
    """Check limits.

    Raises:
        VerificationError: One is missed, or its figure could not be measured; the sentence names each.
    """
    missed = []
    for limit in limits:
        if limit.name not in measured:
            missed.append(f"{limit.name} could not be measured (wanted {limit.comparison} {limit.bound:g})")
        elif not limit.holds(measured[limit.name]):
            value = measured[limit.name]
            missed.append(f"{limit.name} is {value:.4g} (wanted {limit.comparison} {limit.bound:g})")
    if missed:
        raise VerificationError(f"nothing was written, because {' and '.join(missed)}")
