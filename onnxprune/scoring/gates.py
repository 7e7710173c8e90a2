"""Trained importance: every unit gets a gate, and gates are trained with an L1 penalty while the weights rest."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError
from onnxprune.scoring.evidence import Evidence
from onnxprune.scoring.registry import Context, unit_criterion
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

PENALTY = 0.05
"""The weight of the L1 term: the mean magnitude of all gates, beside a loss of order 1."""
RATE = 0.02


@unit_criterion("gates", needs="training", cost="200 training steps by default",
                source="Huang and Wang 2018, Data-Driven Sparse Structure Selection, eq. 3 (with Adam)")  # fmt: skip
def gates(structure: Structure, weights: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
    """|a| after training: each unit's outputs are multiplied by a gate a, under an L1 penalty on all gates.

    The gate stands at the columns by which the unit's consumers read it, which is the same function.
    """
    trained = _trained(context.evidence)
    if not np.isin(group.atoms, list(trained)).any():
        raise RecipeError("no layer that reads these units can be gated")
    return np.array([abs(trained.get(int(a), 0.0)) for a in group.atoms])


@functools.lru_cache(maxsize=1)
def _trained(evidence: Evidence) -> Mapping[int, float]:
    """Train one gate for each atom at the input axis of a measurable weight."""
    structure, gradients = evidence.structure, evidence.gradients
    import torch

    places = {}
    for name, layer in evidence.layers.items():
        if layer.weight not in structure.axes:  # of experts that are spelled out
            continue
        ids = structure.axes[layer.weight][layer.input_axis]
        if not isinstance(ids, Dynamic) and name in gradients.parameters:
            rows, atoms = structure.members(ids)
            if len(atoms):
                places[name] = (layer.input_axis, rows, atoms)
    numbers = np.unique(np.concatenate([a for _, _, a in places.values()])) if places else np.zeros(0, np.int64)
    values = torch.ones(len(numbers), requires_grad=True)
    optimiser = torch.optim.Adam([values], RATE)
    frozen = {name: p.detach() for name, p in gradients.parameters.items()}
    step = 0
    while len(numbers) and step < evidence.steps:
        for x, y in gradients.samples(evidence.batch):
            gated = dict(frozen)
            for name, (axis, rows, atoms) in places.items():
                scale = torch.ones(frozen[name].shape[axis])
                factor = values[torch.from_numpy(np.searchsorted(numbers, atoms))]
                scale = scale.index_put((torch.tensor(rows),), factor)
                gated[name] = frozen[name] * scale.reshape([-1 if i == axis else 1 for i in range(frozen[name].dim())])
            loss = gradients.loss(gradients.forward(x, gated), y) + PENALTY * values.abs().mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
            if step >= evidence.steps:
                break
    return dict(zip(numbers.tolist(), values.detach().tolist(), strict=True))
