"""What goes in one step, decided and not yet done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxprune.selection.sensitivity import Sensitivity
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.blocks import ResidualBlock
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools


@dataclass(frozen=True)
class Plan:
    """What goes, decided on a normalised model and not yet done.

    Attributes:
        structure: The analysis of the model.
        removed: Flags by atom id of the units to remove (none where weights become zero).
        masks: Which weights stay, by constant (none where units go).
        prunable: Parameters that could go.
        gone: Parameters that go.
        untouched: Weights, or groups of units, that the pattern or the criterion does not fit, with the reason.
        sensitivity: What a scan found, where the allocation made one.
        blocks: The residual blocks to remove.
    """

    structure: Structure
    removed: Bools
    masks: BitMasks[ir.Value]
    prunable: int
    gone: int
    untouched: Mapping[str, str] = field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    blocks: tuple[ResidualBlock, ...] = ()

    @property
    def sparsity(self) -> float:
        """The share of prunable parameters that go."""
        return self.gone / self.prunable if self.prunable else 0.0
