"""Criteria that look at gradients of the loss, by the bridge to PyTorch."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from onnxprune.scoring.evidence import Evidence
from onnxprune.scoring.registry import Context, criterion, unit_criterion
from onnxprune.scoring.units import sum_over_units
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

_PASS = "one backward pass over the data"


@criterion("taylor", looks_at="gradients", needs="labels", cost=_PASS,
           source="Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, eq. 8")  # fmt: skip
def taylor(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """(g w)^2, the squared change of the loss, to first order, when a weight goes."""
    change: npt.NDArray[np.float32] = context.evidence.gradients.mean(weight.name) * weight.numbers()
    return np.square(change)


@unit_criterion("taylor-unit", needs="labels", cost=_PASS,
                source="Molchanov et al. 2017, section 2.2 (Taylor expansion), eq. 8")  # fmt: skip
def taylor_unit(structure: Structure, weights: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
    """|sum of g w over the unit|: the change of the loss, to first order, when all of the unit's weights go at once."""
    gradients = context.evidence.gradients
    site_values = {s.value for s in group.sites}
    signed = sum_over_units(
        structure, [w for w in weights if w.value in site_values], lambda w: gradients.mean(w.name) * w.numbers()
    )
    return np.abs(signed[group.atoms])


@criterion(
    "snip",
    looks_at="gradients",
    needs="labels",
    cost=_PASS,
    source="Lee et al. 2019, SNIP: Single-shot Network Pruning, eq. 6",
)
def snip(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """|g w|: how sensitive the loss is to the connection."""
    change: npt.NDArray[np.float32] = context.evidence.gradients.mean(weight.name) * weight.numbers()
    return np.abs(change)


@criterion("grasp", looks_at="gradients", needs="labels",
           cost="two backward passes over the data, the second through the first",
           source="Wang et al. 2020, Picking Winning Tickets (GraSP), eq. 8")  # fmt: skip
def grasp(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """w (H g): what goes first is what lets the gradient grow when it goes. Shifted to start at 0 over the whole model.

    It has a sign, so that sums over units are of the shifted scores.
    """
    gradients = context.evidence.gradients
    least = min(float(gradients.flow(name).min()) for name in gradients.parameters)
    return (gradients.flow(weight.name) - least).astype(np.float32)


@criterion("synflow", looks_at="gradients", cost="one backward pass",
           source="Tanaka et al. 2020, Pruning Neural Networks without any Data (SynFlow), eq. 3")  # fmt: skip
def synflow(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """|w| dR/d|w|, R the sum of the outputs for an input of ones through the magnitudes of all weights."""
    known = context.known or _without_data(weight.structure)
    return known.gradients.synaptic_flow(weight.name)


@functools.lru_cache(maxsize=1)
def _without_data(structure: Structure) -> Evidence:
    return Evidence(structure, {})


@criterion("fisher", looks_at="gradients", needs="labels", cost="one backward pass a sample, at most 256",
           source="Theis et al. 2018, Faster Gaze Prediction (Fisher pruning), eq. 5")  # fmt: skip
def fisher(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """E[g^2] w^2 / 2, the diagonal of the empirical Fisher information in the place of the Hessian's."""
    squares = context.evidence.gradients.squared(sampled=False, name=weight.name)
    return (0.5 * squares * np.square(weight.numbers())).astype(np.float32)
