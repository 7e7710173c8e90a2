"""How much of the tokens each expert of a mixture gets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.graph.hints import Feeds
from onnxprune.graph.linear import Matrix
from onnxprune.graph.measuring import Builder
from onnxprune.runtime.session import make_session, run
from onnxprune.structure.routers import Router


def routed_shares(model: ir.Model, routers: Sequence[Router], feeds: Sequence[Feeds]) -> list[Matrix]:
    """Return for each router the mean over all tokens of what each expert's result is weighed with; one pass.

    Args:
        model: The model.
        routers: Some of its routers.
        feeds: Batches of inputs.

    Returns:
        Arrays of shape (experts,), which sum to 1 at most.
    """
    copy = model.clone()
    build = Builder(copy)
    copy.graph.outputs.clear()
    for number, router in enumerate(routers):
        build.output(build.cast(build.value(str(router.scores.name))), f"router{number}")
    RemoveUnusedNodesPass()(copy)
    session = make_session(copy)
    sums, tokens = [np.zeros(len(router.experts)) for router in routers], 0
    for feed in feeds:
        outputs = run(session, feed)
        for number, router in enumerate(routers):
            scores = np.moveaxis(np.asarray(outputs[f"router{number}"], np.float64), router.axis, -1)
            scores = scores.reshape(-1, scores.shape[-1])
            sums[number] += _shares(scores, router).sum(axis=0)
        tokens += len(scores) if routers else 0
    return [total / max(tokens, 1) for total in sums]


def _shares(scores: Matrix, router: Router) -> npt.NDArray[np.float64]:
    """The share of each expert in each token, 0 where it is not taken; shape (tokens, experts)."""
    if not router.bounded:
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores = scores / scores.sum(axis=-1, keepdims=True)
    least = np.partition(scores, -router.taken, axis=-1)[:, -router.taken, None]
    return np.where(scores >= least, scores, 0.0)
