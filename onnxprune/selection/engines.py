"""The weights of a model as the rules of an engine see them."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.engines import ENGINES, Layer, misfits
from onnxprune.recipe.recipe import Recipe
from onnxprune.structure.weights import Weight


def layer_of(weight: Weight) -> Layer:
    """Return a weight as a layer."""
    integers = weight.value in weight.structure.fills
    return Layer(weight.name, weight.value, weight.node, weight.shape, integers, weight.numbers)


def engine_misfits(weights: Sequence[Weight], recipe: Recipe) -> dict[str, str]:
    """Return the weights whose zeros the recipe's engine could not use, by name, with the reason.

    Where whole units go first, this is asked once they are gone.
    """
    if recipe.engine is None or recipe.parts.zeros is None or recipe.parts.mixed:
        return {}
    return misfits(ENGINES[recipe.engine], [layer_of(weight) for weight in weights])
