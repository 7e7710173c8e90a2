"""Remove dead units, exactly and to the fixpoint (Han et al. 2015, section 3.5).

Cases:
1. A unit that nothing reads goes, with all weights that led to it.
2. A unit without incoming weights puts out a constant. What it contributes is folded into the biases of its
   consumers; then nothing reads it.

Each removal can leave others dead, so both are repeated until nothing changes. Where a consumer pads its input, a
constant that is not zero cannot be folded exactly: the unit stays, and ``left`` says so.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxprune.structure.analysis import analyse
from onnxprune.structure.constant_folding import fold_constants
from onnxprune.structure.constants import constant_channels
from onnxprune.structure.dead import dead_atoms
from onnxprune.structure.ledger import Ledger
from onnxprune.structure.rewrite import Kept, remove
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import prunable_weights


class RemoveDeadUnits(ir.passes.InPlacePass):
    """Remove units that the outputs do not depend on, in a normalised model.

    Attributes:
        kept: After the call, the kept indices of each axis that lost something, counted in the model as it came.
        removed: After the call, how many units went.
        left: Sentences on constant units that had to stay.
    """

    preserves: Literal["exactly"] = "exactly"

    def __init__(self) -> None:
        super().__init__()
        self.kept: Kept = {}
        self.removed = 0
        self.left: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        while True:
            structure = analyse(model)
            folded, self.left = fold_constants(structure, constant_channels(structure))
            if folded:  # it may have given a node a bias that this analysis does not know
                modified = True
                structure = analyse(model)
            dead = _without_emptying(structure, dead_atoms(structure))
            if not dead.any():
                return ir.passes.PassResult(model, modified=modified)
            modified = True
            self.removed += int(dead.sum())
            self.kept = compose_kept(self.kept, remove(structure, dead))


def compose_kept(first: Kept, second: Kept) -> Kept:
    """Return what two removals, one after the other, keep, in indices from before the first."""
    out = {name: dict(axes) for name, axes in first.items()}
    for name, axes in second.items():
        for axis, indices in axes.items():
            mine = out.setdefault(name, {})
            mine[axis] = mine[axis][indices] if axis in mine else indices
    return out


def _without_emptying(structure: Structure, dead: Bools) -> Bools:
    """Leave one index on every axis, even if all are dead."""
    ledger = Ledger(structure, prunable_weights(structure), structure.groups, floor=1)
    for atom in np.flatnonzero(dead):
        ledger.remove(np.array([atom]), limit=float("inf"))
    return ledger.removed
