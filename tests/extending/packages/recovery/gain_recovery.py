"""`--recover gain`: one factor for each output of a layer."""

from collections.abc import Sequence

import numpy as np

from onnxprune.recovery import method
from onnxprune.recovery.fitting import Layer, Proposal
from onnxprune.recovery.solve import Affine, squared_error
from onnxprune.runtime.statistics import Moments


@method("gain", judged_by_outputs=False, source="an example")
def gain(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """W *= s with s = <z_dense, z> / <z, z> of each output, made from all inputs but the last part."""
    used, held = folds[0], folds[-1]
    for moments in folds[1:-1]:
        used = used + moments
    w = layer.start.weight
    along = np.einsum("gok,gko->go", w, used.az)
    square = np.einsum("gok,gkl,gol->go", w, used.aa, w)
    scaled = w * np.divide(along, square, out=np.ones_like(along), where=square > 0)[:, :, None]
    new = Affine(scaled, layer.start.bias)
    scale = float(held.zz.sum()) or 1.0
    before, after = (float(squared_error(held, affine).sum()) / scale for affine in (layer.start, new))
    return Proposal(new, before, after)
