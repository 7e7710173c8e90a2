"""Structure + removed atoms -> a smaller model: ``remove(structure, removed) -> Kept``.

Every constant is cut along the axes that lost indices; every node whose attributes or constants carry extents
(Reshape targets, Split sizes, group counts, ...) has them re-derived by its rewriter. What is computed from shapes in
the graph keeps computing the *original* numbers, so that a 1/sqrt(d) stays what it was; those that use such numbers
as extents are corrected where they use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.operators import key
from onnxprune.graph.tensors import edited
from onnxprune.model_io.bodies import nodes_of
from onnxprune.structure import registry
from onnxprune.structure.rewriter import Rewriter, cut
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools

Kept = Mapping[str, Mapping[int, npt.NDArray[np.int64]]]
"""For each constant that lost something, the kept indices of each axis that did."""


def remove(structure: Structure, removed: Bools) -> Kept:
    """Cut the removed atoms out of the structure's model, in place.

    Args:
        structure: The analysis of the model; it is of no further use afterwards.
        removed: Flags by atom id, shape (number of ids,).

    Returns:
        The kept indices, by constant and axis.
    """
    keep = structure.keep(removed)
    lost = keep.lost()
    _rewrite(Rewriter(structure, keep), lost)
    return {str(v.name): {i: np.flatnonzero(f) for i, f in axes.items()} for v, axes in lost.items()}


def _rewrite(rewriter: Rewriter, lost: Mapping[ir.Value, Mapping[int, Bools]]) -> None:
    """Rewrite nodes first, while all constants have their old content; then cut the constants."""
    keep = rewriter.keep
    for node in list(nodes_of(rewriter.structure.model.graph)):
        if any(keep.changed(v) for v in (*node.inputs, *node.outputs) if v is not None):
            rewrite = registry.find_rewriter(key(node.domain, node.op_type))
            if rewrite is not None:
                rewrite(rewriter, node)
    for value, axes in lost.items():
        if value.is_initializer() and value.const_value is not None:
            shape = [int(axes[i].sum()) if i in axes else n for i, n in enumerate(value.const_value.shape.numpy())]
            value.const_value = edited(value.const_value, partial(cut, axes=axes), shape)
    rewriter.update_shapes()
