"""The registry of criteria. A criterion gives every weight a *saliency*: what is lost, to first order, without it.

Saliencies are non-negative and add up: the saliency of a unit is the sum over the weights it takes along. A criterion
is a decorated function of a few lines; other packages add theirs through the entry point group
``onnxprune.criteria``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError

if TYPE_CHECKING:
    from onnxprune.scoring.weights import Weight

Saliency = Callable[["Weight", np.random.Generator], npt.NDArray[np.float32]]
"""From a weight and a random generator to its saliencies: same shape, finite, non-negative."""

_FAMILIES = ("magnitude",)


@dataclass(frozen=True)
class Criterion:
    """One way to say how much a weight matters.

    Attributes:
        name: What the user writes.
        saliency: The function.
        needs: What it needs beside the weights: ``nothing``, ``calibration``, ``labels`` or ``training``.
        source: Where the formula comes from.
    """

    name: str
    saliency: Saliency
    needs: str
    source: str


_CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, *, needs: str = "nothing", source: str) -> Callable[[Saliency], Saliency]:
    """Register a saliency function under a name."""

    def register(function: Saliency) -> Saliency:
        _CRITERIA[name] = Criterion(name, function, needs, source)
        return function

    return register


@functools.cache
def _load() -> None:
    for family in _FAMILIES:
        importlib.import_module(f"onnxprune.scoring.{family}")
    for entry in entry_points(group="onnxprune.criteria"):
        entry.load()


def criteria() -> dict[str, Criterion]:
    """Return all criteria by name."""
    _load()
    return dict(sorted(_CRITERIA.items()))


def find_criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        RecipeError: There is none of that name.
    """
    known = criteria()
    if name not in known:
        raise RecipeError(f"unknown criterion {name!r}; choose one of {', '.join(known)}")
    return known[name]
