"""Write docs/criteria.md from the registries: ``python docs/generate_criteria.py``."""

from __future__ import annotations

from pathlib import Path

from onnxprune.recovery import METHODS
from onnxprune.scoring import Criterion, criteria
from onnxprune.selection.allocation import ALLOCATIONS, USUAL_ALLOCATION
from onnxprune.selection.unit_allocation import UNIT_ALLOCATIONS

TARGET = Path(__file__).with_name("criteria.md")

_INTRODUCTION = """\
# Criteria, allocation, recovery

Written by `docs/generate_criteria.py` from the registries; do not edit.

A criterion says what is lost when a single weight or a whole unit (a channel, neuron, head, ...) goes. Where it gives
weights a saliency, that of a unit is the root of the sum over all the weights it takes along. Some criteria have a way
of their own for units. A residual block (`--structure blocks`) is scored by the sum, for each parameter it saves.
`needs` is what has to be given beside the model: *calibration* is unlabelled inputs, *labels* inputs with their labels,
*training* labelled inputs to train gates on, *PyTorch* the extra
`retrain`. *Compared within* says where the source compares single weights (all of
the *model*, a *layer*, or one *output*) and the allocation that `auto` takes for it. Criteria that look at the sizes of
weights see them as they act: times what a BatchNormalization behind the layer multiplies them by. g is the gradient of
the loss, x and a are activations, H is a Hessian.
"""


def table() -> str:
    """Return the page as Markdown."""
    lines = [
        _INTRODUCTION,
        "## Criteria",
        "",
        "| criterion | scores | formula | compared within | needs | cost | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, criterion in criteria().items():
        cells = (
            f"`{name}`", _scores(criterion), criterion.formula, _compared(criterion), criterion.in_words,
            criterion.cost, criterion.source,
        )  # fmt: skip
        lines.append("| " + " | ".join(_escaped(c) for c in cells) + " |")
    lines += ["", "## Allocation", "", "How much goes of each layer, or group of units.", ""]
    lines += ["| allocation | single weights | whole units |", "|---|---|---|"]
    for name in sorted({*ALLOCATIONS, *UNIT_ALLOCATIONS}):
        ways = (ALLOCATIONS.get(name), UNIT_ALLOCATIONS.get(name))
        cells = (f"`{name}`", *(way.formula if way else "" for way in ways))
        lines.append("| " + " | ".join(_escaped(c) for c in cells) + " |")
    lines += [
        "",
        "## Recovery without labels",
        "",
        "Layer by layer, towards what the dense network computes; a change stays only where the error named falls on "
        "inputs that it was not made from. What each is worth is measured in [recovery.md](recovery.md).",
        "",
        "| method | formula | needs | error that must fall | source |",
        "|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        cells = (f"`{name}`", method.formula, method.in_words, method.judge, method.source)
        lines.append("| " + " | ".join(_escaped(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _compared(criterion: Criterion) -> str:
    """Where single weights are compared, and the allocation that follows from it."""
    if criterion.weights is None:
        return ""
    return f"{criterion.compares} ({USUAL_ALLOCATION[criterion.compares]})"


def _scores(criterion: Criterion) -> str:
    if criterion.blocks is not None:
        return "residual blocks"
    if criterion.weights is None:
        return "units"
    return "weights, and units in its own way" if criterion.units is not None else "weights, units by their sum"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(table(), encoding="utf-8")
