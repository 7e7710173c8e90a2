"""Zero whole units where they stand: the masked twin of `RemoveUnits`, and the oracle for it."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from onnxprune.structure.masking import zero_units
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools


class MaskUnits(ir.passes.InPlacePass):
    """Zero every weight of the removed units; shapes stay."""

    preserves: Literal["up to recovery"] = "up to recovery"

    def __init__(self, structure: Structure, removed: Bools) -> None:
        """Take the analysis of the model that will be passed in, and flags by atom id, shape (number of ids,)."""
        super().__init__()
        self.structure = structure
        self.removed = removed

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        zero_units(self.structure, self.removed)
        return ir.passes.PassResult(model, modified=bool(self.removed.any()))
