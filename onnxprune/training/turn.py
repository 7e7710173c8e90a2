"""What one training of a pruned model starts from, trains and freezes, as the recipe says.

An iteration has one training, or two where convolutions and fully connected layers take turns. Surviving weights go on
where they are, go back to earlier values, or start anew: the variants of Han et al. 2015, Frankle et al. 2019 and Renda
et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import ModelError, RecipeError
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.layers import find_layers
from onnxprune.training.masks import Masks, apply_masks
from onnxprune.training.reinit import reinitialise
from onnxprune.training.task import Span

Weights = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Phase:
    """One training of an iteration.

    Attributes:
        prunes: Initializers that are pruned before it; None for all.
        frozen: Initializers that it does not train.
        number, count: Of all the trainings of the whole run, from 0, for the learning rate that spans them.
    """

    prunes: frozenset[str] | None
    frozen: frozenset[str]
    number: int
    count: int


def phases(model: ir.Model, recipe: Recipe, iteration: int) -> list[Phase]:
    """Return the trainings of an iteration: one, or two where fully connected layers and convolutions take turns.

    Args:
        model: The model before it.
        recipe: The recipe.
        iteration: The number of the iteration, from 1.

    Raises:
        RecipeError: They are to take turns, but the model has only one of the two.
    """
    if not recipe.alternate:
        return [Phase(None, frozenset(), iteration - 1, recipe.iterations)]
    layers = find_layers(model)
    conv = frozenset(name for name, layer in layers.items() if layer.kind == "conv")
    rest = frozenset(layers) - conv
    if not conv or not any(layers[name].kind == "fc" for name in rest):
        raise RecipeError("--alternate needs a model with both convolutions and fully connected layers.")
    count = 2 * recipe.iterations
    return [Phase(rest, conv, 2 * iteration - 2, count), Phase(conv, rest, 2 * iteration - 1, count)]


def settings_of(recipe: Recipe, iteration: int) -> TrainSettings:
    """Return the settings of an iteration's training; the last one may have its own."""
    assert recipe.retrain is not None
    if recipe.retrain_last is not None and iteration == recipe.iterations:
        return recipe.retrain_last
    return recipe.retrain


def settings_of_shrinking(recipe: Recipe) -> TrainSettings:
    """Return the settings of the training that shrinks what is about to go.

    Its learning rate is constant, and its last state is kept, whatever that costs on the validation data.
    """
    assert recipe.retrain is not None
    changes = {"epochs": recipe.shrink_epochs, "steps": None, "schedule": "constant", "keep_best": False}
    return recipe.retrain.model_copy(update={**changes, "patience": None})


def span_of(recipe: Recipe, phase: Phase) -> Span:
    """Return the part of the learning-rate schedule that a training is.

    With ``--survivors continue`` one schedule runs over all trainings; otherwise it starts anew with each.
    """
    if recipe.survivors != "continue":
        return Span()
    return Span(phase.number / phase.count, (phase.number + 1) / phase.count)


def rewind_weights(recipe: Recipe) -> dict[str, npt.NDArray[Any]]:
    """Return the float initializers that survivors go back to; empty unless the recipe asks for it.

    Raises:
        ModelError: The file with them cannot be read.
    """
    if recipe.survivors != "rewind" or recipe.rewind_to is None:
        return {}
    try:
        source = ir.load(str(recipe.rewind_to))
    except Exception as error:
        raise ModelError(f"The checkpoint to rewind to, '{recipe.rewind_to}', cannot be read: {error}") from error
    return {
        name: value.const_value.numpy()
        for name, value in source.graph.initializers.items()
        if value.const_value is not None and value.dtype is not None and value.dtype.is_floating_point()
    }


def start_weights(model: ir.Model, masks: Masks, rewind: Weights, recipe: Recipe, iteration: int) -> ir.Model:
    """Return the model with the weights that an iteration's training starts from.

    Args:
        model: The model, pruned.
        masks: Which of its weights stay.
        rewind: The weights to go back to, by name.
        recipe: The recipe.
        iteration: The number of the iteration, from 1.

    Raises:
        ModelError: A weight to go back to has another shape.
    """
    if recipe.survivors == "reinit":
        assert recipe.retrain is not None
        return reinitialise(model, masks, recipe.retrain.seed + iteration)
    if recipe.survivors != "rewind":
        return model
    rewound = model.clone()
    for name, array in rewind.items():
        value = rewound.graph.initializers.get(name)
        if value is None or value.const_value is None:
            continue
        if value.const_value.numpy().shape != array.shape:
            raise ModelError(f"'{name}' has shape {array.shape} in the checkpoint to rewind to, but "
                             f"{value.const_value.numpy().shape} in the model.")  # fmt: skip
        value.const_value = ir.tensor(array, dtype=value.dtype, name=name)
    return apply_masks(rewound, masks)
