"""Limits on what a run must reach: ``latency<=0.6``. Each is checked on a figure that was measured, never estimated.

limits = [parse("latency<=0.6"), parse("metric_drop<=0.01")]
check(limits, measured_figures(result))             # VerificationError names each figure that misses its limit
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxprune.errors import RecipeError
from onnxprune.recipe.numbers import fraction, share_left

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

_RATIOS = ("latency", "size", "parameters", "macs")  # after / before

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*([0-9.eE+-]+[%x]?)\s*")


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


def _bound(name: str, text: str) -> float:
    """The number of a limit: 0.6 or 60%, and 0.6x or 2x (twice as fast) of a figure after / before."""
    return float(share_left(text) if name in _RATIOS else fraction(text))


def parse(text: str) -> Limit:
    """Read a limit such as ``latency<=0.6`` or ``size<=25%``.

    Raises:
        RecipeError: It is not of this form, or names a figure that is not measured.
    """
    match = _FORM.fullmatch(text)
    try:
        bound = _bound(match[1], match[3]) if match else None
    except ValueError:
        bound = None
    if match is None or bound is None:
        raise RecipeError(f"a limit looks like 'latency<=0.6' (with <=, <, >= or >), not {text!r}")
    if match[1] not in FIGURES:
        raise RecipeError(f"there is no figure {match[1]!r} to limit; choose from {', '.join(FIGURES)}")
    return Limit(match[1], match[2], bound)
