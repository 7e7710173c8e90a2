"""Remove whole units: every constant is cut along their indices, every extent in the graph is re-derived."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from onnxprune.model_io.bodies import graphs_of
from onnxprune.structure.rewrite import Kept, remove
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools


class RemoveUnits(ir.passes.InPlacePass):
    """Cut units out of the model that a structure describes.

    What is left computes what the model with all weights of these units zeroed computes (`MaskUnits`).

    Attributes:
        kept: After the call, the kept indices by constant and axis.
    """

    preserves: Literal["up to recovery"] = "up to recovery"

    def __init__(self, structure: Structure, removed: Bools) -> None:
        """Take the analysis of the model that will be passed in, and flags by atom id, shape (number of ids,)."""
        super().__init__()
        self.structure = structure
        self.removed = removed
        self.kept: Kept = {}

    def requires(self, model: ir.Model) -> None:
        """Check that the structure is that of this model."""
        if model is not self.structure.model:
            raise ir.passes.PreconditionError("the structure describes another model")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.kept = remove(self.structure, self.removed)
        return ir.passes.PassResult(model, modified=bool(self.kept))

    def ensures(self, model: ir.Model) -> None:
        """Check that every cut constant has the extents that were announced."""
        for graph in graphs_of(model):
            for name, value in graph.initializers.items():
                for axis, indices in self.kept.get(name, {}).items():
                    if value.const_value is not None and value.const_value.shape[axis] != len(indices):
                        raise ir.passes.PostconditionError(f"{name} was not cut along axis {axis}")
