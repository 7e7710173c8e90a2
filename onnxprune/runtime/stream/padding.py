"""Which tokens of padded sequences count: found from the inputs, and proved by a run. Padding is cut off.

A mask is an integer input [samples, tokens] of zeros and ones. It is one where what the other inputs of that shape hold
under its zeros does not move the model's outputs: other numbers are put there and the model is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import OnnxPruneError
from onnxprune.graph.hints import Feeds
from onnxprune.runtime.session import make_session, run

Array = npt.NDArray[Any]
_SAME = 1e-4  # relative change of the outputs that counts as none


def padding_mask(model: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> str | None:
    """Return the name of the input that masks padding; None where there is none."""
    names = [name for name, array in feeds[0].items() if array.ndim == 2 and array.dtype.kind in "iub"]
    for name in names:
        masks = [np.asarray(feed[name]) for feed in feeds]
        values = set(np.unique(np.concatenate([m.reshape(-1) for m in masks])).tolist())
        if values == {0, 1} and _hides(model, feeds[int(np.argmin([m.mean() for m in masks]))], name):
            return name
    return None


def _hides(model: ir.Model, feed: Mapping[str, Array], name: str) -> bool:
    """Whether the outputs stay what they are when other inputs change where this one is 0."""
    mask = np.asarray(feed[name]) != 0
    if mask.all() or not mask.any(axis=1).all():
        return False
    others = {n: a for n, a in feed.items() if n != name and a.shape == mask.shape and a.dtype.kind in "iuf"}
    changed = dict(feed)
    for other, array in others.items():
        first = np.broadcast_to(array[:, :1], array.shape)  # the first token of each sample: a number that is allowed
        changed[other] = np.where(mask, array, np.where(array == first, array.max(), first)).astype(array.dtype)
    if not any((changed[n] != feed[n]).any() for n in others):
        return False
    try:
        session = make_session(model)
        before, after = run(session, feed), run(session, changed)
    except OnnxPruneError:
        return False
    return all(_close(np.asarray(before[n]), np.asarray(after[n]), mask) for n in before)


def without_padding(
    model: ir.Model, inputs: Mapping[str, Array], mask: str, feeds: Sequence[Feeds], size: int
) -> list[Feeds]:
    """Sort samples by length and cut each batch to its longest; the batches as they were where the model refuses it.

    Args:
        model: The model.
        inputs: All samples.
        mask: The input that masks padding.
        feeds: The batches so far.
        size: Batches in a batch.
    """
    attended = np.asarray(inputs[mask]) != 0
    lengths = attended.shape[1] - np.argmax(attended[:, ::-1], axis=1)
    order, usual = np.argsort(lengths, kind="stable"), list(feeds)
    batches: list[Feeds] = []
    for start in range(0, len(order) - (len(order) % size if len(usual[-1][mask]) == size else 0), size):
        chosen = order[start : start + size]
        longest = int(lengths[chosen].max())
        batches.append({name: _cut(np.asarray(inputs[name]), chosen, attended.shape, longest) for name in feeds[0]})
    whole = {name: _cut(np.asarray(inputs[name]), order[:size], attended.shape, attended.shape[1]) for name in feeds[0]}
    try:
        session = make_session(model)
        short, long = run(session, batches[0]), run(session, whole)
    except OnnxPruneError:
        return usual
    width = batches[0][mask].shape[1]
    for name in short:
        a, b = np.asarray(short[name]), np.asarray(long[name])
        if b.ndim > 1 and b.shape[:2] == (size, attended.shape[1]):
            b = b[:, :width]
        if not _close(b, a, batches[0][mask] != 0):
            return usual
    return batches


def _cut(array: Array, chosen: Array, shape: tuple[int, ...], longest: int) -> Array:
    if array.ndim == 0:
        return array
    return array[chosen][:, :longest] if array.shape[:2] == shape else array[chosen]


def _close(before: Array, after: Array, mask: Array) -> bool:
    if before.shape != after.shape or before.dtype.kind != "f":
        return before.shape == after.shape
    if before.shape[:2] == mask.shape:  # an output of each token: padding may do what it likes there
        before, after = before[mask], after[mask]
    scale = float(np.abs(before).max()) or 1.0
    return float(np.abs(before - after).max()) <= _SAME * scale
