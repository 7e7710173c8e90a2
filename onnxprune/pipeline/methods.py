"""Everything that a method of pruning can be made of, read from the registries."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from onnxprune.recipe.granularity import STRUCTURES
from onnxprune.recipe.schedules import SCHEDULES
from onnxprune.recovery import METHODS
from onnxprune.scoring import criteria
from onnxprune.selection.allocation import ALLOCATIONS
from onnxprune.selection.unit_allocation import UNIT_ALLOCATIONS


@dataclass(frozen=True)
class Entry:
    """One value of one setting.

    Attributes:
        setting: The setting.
        name: The value.
        about: What it does: a formula, where there is one.
        fits: ``weights``, ``units`` or ``weights, units``; empty where the question makes no sense.
        needs: ``nothing``, ``calibration``, ``labels`` or ``training`` (labelled inputs to train gates on).
    """

    setting: str
    name: str
    about: str
    fits: str = ""
    needs: str = "nothing"


def catalogue() -> list[Entry]:
    """Return all values of all settings that a method is made of, in the order in which they act."""
    return [
        *(Entry("structure", name, about) for name, about in STRUCTURES.items()),
        *(Entry("criterion", name, c.formula, ", ".join(c.scores), c.needs) for name, c in criteria().items()),
        *_allocations(),
        *(Entry("schedule", name, _first(function)) for name, function in SCHEDULES.items()),
        *(Entry("recover", name, m.formula, needs=m.needs) for name, m in METHODS.items()),
    ]


def _allocations() -> Iterable[Entry]:
    functions: dict[str, Callable[..., Any]] = {**UNIT_ALLOCATIONS, **ALLOCATIONS}
    kinds: dict[str, Collection[str]] = {"weights": ALLOCATIONS, "units": UNIT_ALLOCATIONS}
    for name, function in functions.items():
        fits = ", ".join(kind for kind, registry in kinds.items() if name in registry)
        needs = "calibration" if name == "sensitivity" else "nothing"
        yield Entry("allocation", name, _first(function), fits, needs)


def _first(function: Callable[..., Any]) -> str:
    """The first sentence of its docstring."""
    return " ".join((function.__doc__ or "").split("\n\n")[0].split())
