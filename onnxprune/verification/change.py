"""How far the outputs of a pruned model are from those of its original.

Each output counts on its own scale, and so does each part of it: boxes in pixels and scores from 0 to 1 may share one
tensor. Outputs that say nothing (NaN, empty, constant whatever the input is) show no change, and none is told of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import DataError, ModelError, VerificationError
from onnxprune.graph.hints import hints_of
from onnxprune.runtime import Feeds
from onnxprune.runtime.in_blocks import check_session, run_each
from onnxprune.verification.comparable import seeded
from onnxprune.verification.proof import other_inputs, says_nothing

Outputs = Mapping[str, Any]

_PARTS_FROM_RANK = 3  # of [samples, columns] a few rows tell the scale of a column only where it is another by far
_ENOUGH_VALUES = 16
_SMALLEST_SCALE = 1e-4  # of the largest value of the output
_FAR_SMALLER = 1 / 16
_MOST_COLUMNS = 4096
_DRAWS = 12


def changes_of(
    original: ir.Model,
    pruned: ir.Model,
    batches: Sequence[Feeds],
    expected: Sequence[Outputs],
    actual: Sequence[Outputs],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Return the largest change of each output, relative to the largest value of the part that it lies in.

    It is NaN for all where no output of the original says anything.

    Args:
        original, pruned: The models.
        batches: Inputs.
        expected, actual: What both give for them.
        seed: Of more inputs, where columns of an output need more rows to tell their scale.

    Raises:
        VerificationError: The pruned model does not run.
    """
    changes: dict[str, float] = {}
    for a, b in zip(expected, actual, strict=True):
        for name in a:
            changes[name] = max(changes.get(name, 0.0), change_of_output(a[name], b[name]))
    small = [
        n for n in changes if not isinstance(expected[0][n], list) and _has_small_columns([a[n] for a in expected])
    ]
    if small:
        rows = list(_more(original, pruned, seed, len(batches), zip(expected, actual, strict=True)))
        for name in small:
            changes[name] = max(changes[name], _change_of_columns([(a[name], b[name]) for a, b in rows]))
    if max(changes.values(), default=0.0) == 0 and batches and not _says_something(original, batches, expected):
        return _on_samples(original, pruned, batches, seed) or dict.fromkeys(changes, float("nan"))
    return changes


def _on_samples(original: ir.Model, pruned: ir.Model, batches: Sequence[Feeds], seed: int) -> dict[str, float]:
    """The changes on the user's own samples, which may reach what made-up inputs do not; none where there are none."""
    samples = [dict(feeds) for feeds in hints_of(original).samples]
    if not samples or len(samples) == len(batches) and all(map(_equal, samples, batches)):
        return {}
    sides = []
    for model in (original, pruned):
        session = check_session(seeded(model), error=VerificationError)
        try:
            sides.append(run_each(session, samples, error=DataError))
        except DataError:
            return {}
    changes = changes_of(original, pruned, samples, *sides, seed=seed)
    return {} if any(map(math.isnan, changes.values())) else changes


def _equal(first: Feeds, second: Feeds) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def worst(changes: Mapping[str, float]) -> float:
    """Return the largest change of any output; NaN where none says anything."""
    return max(changes.values(), default=0.0)


def sentence(change: float) -> str:
    """Say how far outputs are from the original's."""
    if math.isnan(change):
        return "no change can be told, since no output says anything (NaN, empty, or the same whatever the input is)"
    return f"outputs differ by {change:.2g} of their largest value"


def change_of_output(expected: Any, actual: Any) -> float:
    """Return the largest difference of an output, relative to the largest value of the part that it lies in.

    Whole numbers of 32 and 64 bits are indices and labels, which have no distance: of them it is the share that
    differs.

    Boxes in pixels and scores from 0 to 1 may share one tensor of three or more axes. So each index of the axis behind
    the samples, and of the last axis, is a part with a scale of its own where it holds enough values to tell a scale.
    """
    a, b = np.asarray(expected), np.asarray(actual)
    if a.shape == b.shape and a.dtype == b.dtype and (a.dtype.kind == "b" or a.dtype.kind in "iu" and a.itemsize >= 4):
        return float(np.mean(a != b)) if a.size else 0.0
    whole = runtime.relative_difference(expected, actual)
    if a.shape != b.shape or a.ndim < _PARTS_FROM_RANK or a.dtype.kind not in "fiu" or not np.isfinite(whole):
        return whole
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return whole
    largest = whole
    for axis in {1, a.ndim - 1}:
        if a.size < _ENOUGH_VALUES * a.shape[axis]:
            continue
        others = tuple(i for i in range(a.ndim) if i != axis)
        scale = np.maximum(np.abs(a).max(axis=others), _SMALLEST_SCALE * np.abs(a).max(initial=0.0))
        gaps = np.abs(a - b).max(axis=others)
        largest = max(largest, float(np.max(gaps[scale > 0] / scale[scale > 0], initial=0.0)))
    return largest


def _has_small_columns(outputs: Sequence[Any]) -> bool:
    """Whether an output has parts along one axis that are far smaller than others."""
    arrays = [np.asarray(output) for output in outputs]
    return any(bool(_far_smaller(_columns(arrays, axis)).any()) for axis in _axes(arrays))


def _change_of_columns(pairs: Sequence[tuple[Any, Any]]) -> float:
    """The largest change of a part that is far smaller than others along one axis, on its own scale."""
    sides = [[np.asarray(array) for array in side] for side in zip(*pairs, strict=True)]
    largest = 0.0
    if [a.shape for a in sides[0]] != [b.shape for b in sides[1]]:
        return largest
    for axis in sorted(set(_axes(sides[0])) & set(_axes(sides[1]))):
        a, b = (_columns(side, axis) for side in sides)
        far = _far_smaller(a)
        if len(a) >= _ENOUGH_VALUES and far.any():
            gaps, scales = np.abs(a - b).max(axis=0)[far], np.abs(a).max(axis=0)[far]
            largest = max(largest, float(np.max(gaps / scales)))
    return largest


def _axes(arrays: Sequence[Any]) -> list[int]:
    """The axes whose indices may be quantities of their own: the one behind the samples, and the last."""
    rank = arrays[0].ndim
    if rank < 2 or any(a.ndim != rank or a.dtype.kind != "f" or not a.size for a in arrays):
        return []
    if not all(np.isfinite(a).all() for a in arrays):
        return []
    same = [axis for axis in {1, rank - 1} if len({a.shape[axis] for a in arrays}) == 1]
    return [axis for axis in same if 1 < arrays[0].shape[axis] <= _MOST_COLUMNS]


def _columns(arrays: Sequence[Any], axis: int) -> Any:
    """All values of several arrays, one column for each index of an axis."""
    return np.concatenate([np.moveaxis(a.astype(np.float64), axis, -1).reshape(-1, a.shape[axis]) for a in arrays])


def _far_smaller(columns: Any) -> Any:
    """Which columns are far smaller than the largest, but not nothing beside it."""
    scales = np.abs(columns).max(axis=0)
    return (scales < _FAR_SMALLER * scales.max()) & (scales > _SMALLEST_SCALE * scales.max())


def _more(
    original: ir.Model, pruned: ir.Model, seed: int, count: int, first: Iterable[tuple[Outputs, Outputs]]
) -> Iterator[tuple[Outputs, Outputs]]:
    """What both models give for the first inputs and for others of other numbers, one pair for each."""
    yield from first
    sessions = [check_session(seeded(model), error=VerificationError) for model in (original, pruned)]
    for draw in range(1, _DRAWS):
        for feeds in runtime.working_inputs(original, seed=seed + draw, count=count, session=sessions[0]):
            a, b = (runtime.run(session, feeds, error=VerificationError) for session in sessions)
            yield a, b


def _says_something(original: ir.Model, batches: Sequence[Feeds], expected: Sequence[Outputs]) -> bool:
    """Whether an output of the original is finite, not empty and another for other inputs."""
    names = [n for n in expected[0] if any(isinstance(o[n], list) or not says_nothing([o[n]]) for o in expected)]
    if not names or not batches[0]:
        return bool(names)  # a model without inputs has one output, which says all
    try:
        session = check_session(seeded(original), error=ModelError)
        others = run_each(session, [other_inputs(feeds) for feeds in batches], error=DataError)
    except (DataError, ModelError):
        return True
    pairs = list(zip(expected, others, strict=True))
    return any(runtime.relative_difference(a[name], b[name]) > 0 for a, b in pairs for name in names)
