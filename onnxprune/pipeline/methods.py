"""Everything that a method of pruning can be made of, read from the registries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnxprune.data.metrics import METRICS
from onnxprune.plugins import summary
from onnxprune.recipe.granularity import JOINT, MIX, STRUCTURES
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
        needs: ``nothing``, ``calibration``, ``labels`` or ``training`` (labelled inputs to train gates on), with
            ``PyTorch`` where it takes gradients; of a metric ``labels``, ``targets`` or ``original`` (the original
            model's outputs).
    """

    setting: str
    name: str
    about: str
    fits: str = ""
    needs: str = "nothing"


def catalogue() -> list[Entry]:
    """Return all values of all settings that a method is made of, in the order in which they act."""
    return [
        *(Entry("structure", name, granularity.about) for name, granularity in STRUCTURES.items()),
        Entry("structure", *MIX),
        Entry("structure", *JOINT),
        *(Entry("criterion", name, c.formula, ", ".join(c.scores), c.in_words) for name, c in criteria().items()),
        *_allocations(),
        *(Entry("schedule", name, summary(function)) for name, function in SCHEDULES.items()),
        *(Entry("recover", name, m.formula, needs=m.in_words) for name, m in METHODS.items()),
        *(Entry("metric", name, m.formula, needs=m.needs) for name, m in METRICS.items()),
    ]


def _allocations() -> Iterable[Entry]:
    for name in dict.fromkeys((*UNIT_ALLOCATIONS, *ALLOCATIONS)):
        ways = {"weights": ALLOCATIONS.get(name), "units": UNIT_ALLOCATIONS.get(name)}
        entries = [way for way in ways.values() if way is not None]
        fits = ", ".join(kind for kind, way in ways.items() if way is not None)
        needs = "calibration" if any(way.needs == "calibration" for way in entries) else "nothing"
        yield Entry("allocation", name, entries[0].formula, fits, needs)
