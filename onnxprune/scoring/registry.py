"""The registry of criteria. A criterion says what is lost, to first order, when a weight or a unit goes.

Most give every weight a *saliency*: non-negative, and additive, so that the saliency of a unit is the sum over the
weights it takes along. Some look at whole units instead (activations, BatchNorm scales); some do both, each in its own
way. Each is a decorated function of a few lines.

    criterion = find_criterion("wanda").on(Evidence(structure, inputs={"images": array}))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError, RecipeError
from onnxprune.plugins import Plugins, Registry, judged, summary
from onnxprune.scoring.evidence import LooksAt

if TYPE_CHECKING:
    from onnxprune.scoring.evidence import Evidence
    from onnxprune.structure.blocks import ResidualBlock
    from onnxprune.structure.groups import Group
    from onnxprune.structure.structure import Structure
    from onnxprune.structure.weights import Weight

Needs = Literal["nothing", "calibration", "labels", "training"]
Compares = Literal["model", "layer", "output"]
"""Where saliencies of single weights are compared: all of the model's, those of a layer, or those of one output."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a criterion may look at beside the weights.

    Attributes:
        rng: The run's random numbers.
        known: Statistics and gradients; None where the user gave no data and the criterion needs none.
    """

    rng: np.random.Generator
    known: Evidence | None = None

    @property
    def evidence(self) -> Evidence:
        """Return the statistics and gradients of a criterion that needs some."""
        if self.known is None:
            raise DataError("this criterion needs calibration data")
        return self.known


Saliency = Callable[["Weight", Context], npt.NDArray[np.float32]]
"""From a weight to its saliencies: same shape, finite, non-negative."""

UnitScore = Callable[["Structure", "list[Weight]", "Group", Context], npt.NDArray[np.float64]]
"""From a group, among the weights that count, to the scores of its units: shape (units,), non-negative."""

BlockScore = Callable[["Structure", "Sequence[ResidualBlock]", Context], npt.NDArray[np.float64]]
"""From the residual blocks of a model to their scores: shape (blocks,), non-negative."""

_FAMILIES = ("magnitude", "activation", "gradient", "hessian", "geometry", "gates", "depth", "routing")


@dataclass(frozen=True)
class Criterion:
    """One way to say how much a weight or a unit matters.

    Attributes:
        name: What the user writes.
        weights: From a weight to its saliencies; None where only units have scores.
        units: From a group to the scores of its units; None where they follow from the saliencies.
        needs: What it needs beside the weights.
        source: Where the formula comes from.
        cost: What it costs, in words.
        looks_at: What of a weight its saliencies come from, which not every weight has.
        compares: Where its source compares the saliencies of single weights. Those of the model tell what the loss
            loses; the others depend on a layer's own scale.
        blocks: From residual blocks to their scores; None where these follow from the saliencies.
        evidence: What it was given to look at.
    """

    name: str
    weights: Saliency | None
    units: UnitScore | None
    needs: Needs
    source: str
    cost: str
    looks_at: LooksAt = "weights"
    compares: Compares = "model"
    blocks: BlockScore | None = None
    evidence: Evidence | None = None

    @property
    def scores(self) -> tuple[str, ...]:
        """What it can score: ``weights``, ``units``, ``blocks``; saliencies of weights are enough for all."""
        functions = {"weights": self.weights, "units": self.units, "blocks": self.blocks}
        return tuple(name for name, f in functions.items() if self.weights is not None or f is not None)

    @property
    def in_words(self) -> str:
        """What it needs, with PyTorch where it takes gradients."""
        if not self.needs_pytorch:
            return self.needs
        return "PyTorch" if self.needs == "nothing" else f"{self.needs}, PyTorch"

    @property
    def needs_pytorch(self) -> bool:
        """Whether it takes gradients, which the bridge to PyTorch gives."""
        return self.looks_at == "gradients" or self.needs in ("labels", "training")

    @property
    def formula(self) -> str:
        """The first sentence of the docstring, which is the formula."""
        function = self.weights or self.units or self.blocks
        return "" if function is None else summary(function)

    def on(self, evidence: Evidence | None) -> Criterion:
        """Return the criterion with the data it looks at.

        Raises:
            DataError: It needs data or labels that are not there.
        """
        if self.needs != "nothing" and (evidence is None or not evidence.inputs):
            raise DataError(f"the criterion '{self.name}' needs calibration data, and there are none.")
        if self.needs in ("labels", "training") and evidence is not None and evidence.labels is None:
            raise DataError(
                f"the criterion '{self.name}' needs labelled data, and the calibration data have no 'label'."
            )
        return replace(self, evidence=evidence)

    def saliency(self, weight: Weight, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Return the saliencies of a weight.

        Raises:
            RecipeError: The criterion scores units only.
            DataError: It was not given the data it needs.
        """
        if self.weights is None:
            raise RecipeError(
                f"the criterion '{self.name}' scores whole units, not single weights: use it with channels."
            )
        return self.weights(weight, self.context(rng))

    def obstacle(self, weight: Weight) -> str:
        """Say why a weight has no saliency, empty where it has."""
        return "" if self.evidence is None else self.evidence.obstacle(self.looks_at, weight.name)

    def context(self, rng: np.random.Generator) -> Context:
        """Return what its functions see."""
        if self.needs != "nothing" and self.evidence is None:
            raise DataError(f"the criterion '{self.name}' needs calibration data, and there are none.")
        return Context(rng, self.evidence)


def _fault(saliency: object, weight: Weight, *_: object) -> str:
    """What is wrong with the saliencies that a user's function gave a weight."""
    extents = list(weight.shape)
    array = np.asarray(saliency)
    if array.dtype.kind not in "biuf" or list(array.shape) != extents:
        return f"is not one number for each of the weight '{weight.name}', of shape {extents}"
    if not np.isfinite(array).all() or (array < 0).any():
        return f"holds NaN, infinite or negative numbers: the saliencies of '{weight.name}' have to be finite and >= 0"
    return ""


def _of_function(name: str, function: Saliency) -> Criterion:
    saliency = judged(function, name, _fault)
    return Criterion(name, lambda weight, context: np.asarray(saliency(weight, context)), None, "nothing", "", "")


CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    Plugins("onnxprune.criteria", [f"onnxprune.scoring.{family}" for family in _FAMILIES]),
    flag="--criterion",
    of_function=_of_function,
)
"""All criteria. A function that the user names without a decorator gives saliencies and needs no data."""


def criterion(
    name: str, *, needs: Needs = "nothing", source: str, cost: str = "one look at the weights",
    looks_at: LooksAt = "weights", compares: Compares = "model",
) -> Callable[[Saliency], Saliency]:  # fmt: skip
    """Register a saliency function under a name."""

    def register(function: Saliency) -> Saliency:
        units = CRITERIA.entered(name)
        entry = Criterion(name, function, units.units if units else None, needs, source, cost, looks_at, compares)
        CRITERIA.add(name, entry, function, replace=units is not None and units.weights is None)
        return function

    return register


def unit_criterion(
    name: str, *, needs: Needs = "nothing", source: str, cost: str = "one look at the weights"
) -> Callable[[UnitScore], UnitScore]:
    """Register a function that scores units; under the name of a saliency function it takes the place of its sums."""

    def register(function: UnitScore) -> UnitScore:
        weights = CRITERIA.entered(name)
        if weights is None or weights.weights is None:
            CRITERIA.add(name, Criterion(name, None, function, needs, source, cost), function)
        else:
            CRITERIA.add(name, replace(weights, units=function), function, replace=weights.units is None)
        return function

    return register


def block_criterion(name: str, *, needs: Needs, source: str, cost: str) -> Callable[[BlockScore], BlockScore]:
    """Register a function that scores residual blocks."""

    def register(function: BlockScore) -> BlockScore:
        CRITERIA.add(name, Criterion(name, None, None, needs, source, cost, blocks=function), function)
        return function

    return register


def criteria() -> dict[str, Criterion]:
    """Return all criteria by name."""
    return dict(sorted(CRITERIA.items()))


def find_criterion(name: str) -> Criterion:
    """Return a criterion by name, or the user's own, `module:function`.

    Raises:
        RecipeError: There is none of that name.
    """
    return CRITERIA.find(name)
