"""A criterion of experts: how much of the tokens a router gives them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError
from onnxprune.scoring.registry import Context, unit_criterion
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight


@unit_criterion("routing", needs="calibration", cost="one pass over the calibration data",
                source="Muzio et al. 2024, SEER-MoE, section 3.1 (soft counting of heavy hitters)")  # fmt: skip
def routing(structure: Structure, _: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
    """E[p_e where e is among the best]: the share of the tokens that a router gives an expert; for experts only.

    Raises:
        RecipeError: The units are no experts.
    """
    for router, shares in context.evidence.routed:
        rows, atoms = structure.members(router.experts)
        if np.isin(group.atoms, atoms).all():
            scores = np.zeros(structure.terms.count)
            np.add.at(scores, atoms, shares[rows])
            return scores[group.atoms]
    raise RecipeError(
        "no router chooses among these units: --criterion routing scores experts, as --kinds experts picks"
    )
