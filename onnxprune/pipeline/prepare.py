"""A model made ready: normalised, analysed, and its masked twin."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.packing import is_packed
from onnxprune.passes import MaskBlocks, MaskUnits, Normalise
from onnxprune.structure.analysis import analyse
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools


def prepare(model: ir.Model) -> Structure:
    """Normalise a model in place and analyse it; shapes that onnx cannot infer are measured in ONNX Runtime.

    Raises:
        ModelError: Its weights are packed.
    """
    if is_packed(model):
        raise ModelError("the weights are packed: write the plain model first, with onnxprune unpack MODEL")
    normalise = Normalise()
    normalise(model)
    return analyse(model, runtime.known_facts(model, normalise.facts))


def masked_twin(original: ir.Model, removed: Bools) -> ir.Model:
    """Return a copy of the original with the removed units zeroed. Atom ids are the same in every analysis of it."""
    structure = prepare(original.clone())
    MaskUnits(structure, removed)(structure.model)
    return structure.model


def without_contributions(original: ir.Model, names: Collection[str]) -> ir.Model:
    """Return a copy of the original with what residual blocks of these names contribute zeroed."""
    structure = prepare(original.clone())
    MaskBlocks([b for b in residual_blocks(structure) if b.name in names])(structure.model)
    return structure.model
