"""Criteria that look at what flows through the network on calibration inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError
from onnxprune.graph.linear import Matrix
from onnxprune.runtime.statistics import ChannelMoments
from onnxprune.scoring.acting import acting_numbers
from onnxprune.scoring.registry import Context, criterion, unit_criterion
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

_COST = "one pass over the calibration data"


@criterion("wanda", looks_at="activations", needs="calibration",
           source="Sun et al. 2024, A Simple and Effective Pruning Approach, eq. 1",
           cost=_COST, compares="output")  # fmt: skip
def wanda(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """w^2 E[x^2], the square of |w| times the norm of its input channel; an expert's is that of the tokens it gets."""
    layer = context.evidence.layer(weight.name)
    power = context.evidence.input_moments[weight.name].mean_square
    squares = np.square(acting_numbers(weight).astype(np.float64))
    squares *= layer.per_input(power, squares.ndim)
    return squares.astype(np.float32)


@unit_criterion("activation", needs="calibration", cost=_COST,
                source="Molchanov et al. 2017, Pruning Convolutional Neural Networks, section 2.2")  # fmt: skip
def mean_magnitude(structure: Structure, _: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
    """E|a|: the mean magnitude of what a unit's consumers read of it."""
    return _of_consumers(structure, group, context, lambda m: m.mean_magnitude)


@unit_criterion("apoz", needs="calibration", cost=_COST, source="Hu et al. 2016, Network Trimming, eq. 1")
def apoz(structure: Structure, _: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
    """1 - APoZ: how often what a unit's consumers read of it is above zero (behind a ReLU: not zero)."""
    return _of_consumers(structure, group, context, lambda m: 1 - m.zero_share)


@unit_criterion("variance", needs="calibration", cost=_COST,
                source="Molchanov et al. 2017, section 2.2: standard deviation of the activation")  # fmt: skip
def variance(structure: Structure, _: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
    """Var[a]: a unit that hardly varies is a constant, which biases can take over."""
    return _of_consumers(structure, group, context, lambda m: m.variance)


def _of_consumers(
    structure: Structure, group: Group, context: Context, number: Callable[[ChannelMoments], Matrix]
) -> npt.NDArray[np.float64]:
    """The mean over all channels of all values by which a unit reaches its consumers.

    Raises:
        RecipeError: No consumer of the group can be measured.
    """
    evidence = context.evidence
    consumers = {str(s.value.name): s.value for s in group.sites}
    totals, counts = np.zeros(structure.terms.count), np.zeros(structure.terms.count)
    for name, layer in evidence.layers.items():
        if name not in consumers or name not in evidence.input_moments:
            continue
        found = number(evidence.input_moments[name])
        if layer.stack is None:
            axis = structure.axes[layer.data][layer.data_axis]
        else:  # what any of its experts reads
            axis, found = structure.axes[consumers[name]][layer.input_axis], found.mean(axis=0)
        if isinstance(axis, Dynamic):
            continue
        rows, atoms = structure.members(axis)
        np.add.at(totals, atoms, found[rows])
        np.add.at(counts, atoms, 1.0)
    if not counts[group.atoms].any():
        raise RecipeError("no layer that reads these units can be measured")
    return totals[group.atoms] / np.maximum(counts[group.atoms], 1)
