"""The graph passes, one a file. Each is an `onnx_ir` pass: model in, model out.

Every pass states in ``preserves`` what its result has in common with its input: ``"exactly"`` the same function,
or the same function ``"up to recovery"``, which training or reconstruction can give back.
"""

from onnxprune.passes.fold_weights import FoldWeights
from onnxprune.passes.join_tiles import JoinTiles
from onnxprune.passes.mask_units import MaskUnits
from onnxprune.passes.mask_weights import MaskWeights
from onnxprune.passes.normalise import Normalise
from onnxprune.passes.preparing import PASSES
from onnxprune.passes.remove_blocks import MaskBlocks, RemoveBlocks
from onnxprune.passes.remove_dead import RemoveDeadUnits
from onnxprune.passes.remove_units import RemoveUnits
from onnxprune.passes.store_outputs_first import StoreOutputsFirst
from onnxprune.passes.tidy import Tidy
from onnxprune.passes.tile_layers import TileLayers

__all__ = [
    "PASSES", "FoldWeights", "JoinTiles", "MaskBlocks", "MaskUnits", "MaskWeights", "Normalise", "RemoveBlocks",
    "RemoveDeadUnits", "RemoveUnits", "StoreOutputsFirst", "Tidy", "TileLayers",
]  # fmt: skip
