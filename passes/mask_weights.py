"""Zero single weights: f(x; W) becomes f(x; M * W) with fixed masks M."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxprune.graph.tensors import Array
from onnxprune.structure.masking import edit_constant, zero_of
from onnxprune.structure.structure import Fill, Structure
from onnxprune.structure.terms import Bools


class MaskWeights(ir.passes.InPlacePass):
    """Zero the weights whose mask is False; a quantised weight becomes its zero point. The others stay bit by bit."""

    preserves: Literal["up to recovery"] = "up to recovery"

    def __init__(self, structure: Structure, masks: Mapping[ir.Value, Bools]) -> None:
        """Take the analysis of the model that will be passed in, and for each constant what stays (its shape)."""
        super().__init__()
        self.structure = structure
        self.masks = masks

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for value, mask in self.masks.items():
            if mask.all():
                continue
            fill = self.structure.fills.get(value)
            edit_constant(model, value, partial(_masked, masks=self.masks, key=value, fill=fill))
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _masked(array: Array, masks: Mapping[ir.Value, Bools], key: ir.Value, fill: Fill | None) -> Array:
    return np.where(masks[key], array, zero_of(fill, array))
