"""Inputs for the other branch of a merged decoder, so that a proof covers both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.graph.caches import cache_lengths
from onnxprune.graph.hints import Feeds
from onnxprune.graph.text_inputs import text_inputs


def other_branch(model: ir.Model, feeds: Feeds) -> Iterator[Feeds]:
    """Yield inputs that take the other branch, the likeliest first; none where no input chooses a branch.

    Args:
        model: The model.
        feeds: Inputs of one branch. With a cache, the mask covers the past as well.
    """
    text = text_inputs(model)
    choice, mask = (text.named("branch"), text.named("mask")) if text is not None else (None, None)
    if text is None or choice is None or choice not in feeds:
        return
    turned = {**feeds, choice: ~feeds[choice]}
    if mask is None:
        yield turned
        return
    rows, new = feeds[text.ids].shape
    pasts = {feeds[str(value.name)].shape[axis] for value, axis in cache_lengths(model).items()}
    for past in (*pasts, 0) if turned[choice].all() else (0, *pasts):
        yield {**turned, mask: np.ones((rows, past + new), feeds[mask].dtype)}
