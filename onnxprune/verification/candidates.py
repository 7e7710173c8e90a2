"""Inputs on which removed and masked are compared: the best first, then others that may let an output react.

These are the user's samples, other random numbers, and other kinds: masks the other way round, numbers without a sign,
large ones. A set that equals the best one proves nothing more and is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import runtime
from onnxprune.errors import DataError, ModelError, OnnxPruneError, VerificationError
from onnxprune.graph.hints import hints_of
from onnxprune.runtime import Feeds
from onnxprune.runtime.in_blocks import check_session, outputs_of
from onnxprune.runtime.inputs import Ran, working_runs
from onnxprune.runtime.other_branch import other_branch
from onnxprune.verification.comparable import draws

_DRAWS = 3  # of other random numbers, before other kinds of input are tried


def candidates(original: ir.Model, masked: ir.Model, seed: int) -> Iterator[list[Ran]]:
    """Yield sets of inputs that the twin runs with, the likeliest first, and what it gives for them.

    No session is held meanwhile: whoever compares makes sessions of his own.

    Args:
        original: The model before a removal.
        masked: Its twin in which what was removed is zeroed.
        seed: Of the random numbers.

    Raises:
        VerificationError: The twin does not load, but the original does.
        ModelError: Neither does.
        DataError: No inputs are found that the twin runs with.
    """
    first = _first(original, masked, seed)
    yield first
    best = [feeds for feeds, _ in first]
    if samples := _that_run(masked, [dict(feeds) for feeds in hints_of(masked).samples]):
        yield samples
    for draw in range(1, _DRAWS):
        ran = working(masked, seed=seed + draw, error=VerificationError)
        if not _all_equal([feeds for feeds, _ in ran], best):  # where nothing is random, other numbers are the same
            yield ran
    for change in (_opposite, _positive, _wide):
        changed = [{name: change(array) for name, array in feeds.items()} for feeds in best]
        if not _all_equal(changed, best) and (that_run := _that_run(masked, changed)):
            yield that_run


def working(
    model: ir.Model, *, seed: int, error: type[OnnxPruneError], session: ort.InferenceSession | None = None
) -> list[Ran]:
    """Return two sets of inputs that a model runs with (one of a fixed batch), and what a new session gives for them.

    Args:
        model: The model, seeded where it draws random numbers.
        seed: Of the random inputs.
        error: What to raise where ONNX Runtime does not accept the model.
        session: A session of the model, to save making one.

    Raises:
        OnnxPruneError: Of type `error`: see above.
        DataError: No inputs are found that it runs with.
    """
    session = session or check_session(model, error=error)
    return _of_new_session(model, working_runs(model, seed=seed, count=2, session=session), error)


def _first(original: ir.Model, masked: ir.Model, seed: int) -> list[Ran]:
    """The best inputs, those of another branch too."""
    try:
        session = check_session(masked, error=VerificationError)
        found = working_runs(masked, seed=seed, count=2, session=session)
    except VerificationError as failure:
        _ensure_loads(original, failure)
        raise
    others = (ran for other in other_branch(masked, found[0][0]) if (ran := _ran(session, other)) is not None)
    return _of_new_session(masked, [*found, *itertools.islice(others, 1)])


def _that_run(masked: ir.Model, batches: Sequence[Feeds]) -> list[Ran]:
    """Those of these inputs that the twin runs with."""
    session = check_session(masked, error=VerificationError) if batches else None
    ran = (_ran(session, feeds) for feeds in batches)
    return _of_new_session(masked, [one for one in ran if one is not None])


def _ran(session: Any, feeds: Feeds) -> Ran | None:
    try:
        return feeds, runtime.run(session, feeds)
    except DataError:
        return None


def _of_new_session(model: ir.Model, ran: list[Ran], error: type[OnnxPruneError] = VerificationError) -> list[Ran]:
    """The same where random numbers are drawn as in a session of another model that runs these inputs alone."""
    if not draws(model):
        return ran
    batches = [feeds for feeds, _ in ran]
    return list(zip(batches, outputs_of(model, batches, error=error), strict=True))


def _all_equal(some: Sequence[Feeds], others: Sequence[Feeds]) -> bool:
    """Whether two sets of inputs are the same, so that the second would prove nothing more."""
    return len(some) == len(others) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(some, others, strict=True)
    )


def _opposite(array: Any) -> Any:
    """Masks the other way round."""
    if array.dtype == bool:
        return ~array
    return 1 - array if array.dtype.kind in "iu" and np.isin(array, (0, 1)).all() else array


def _positive(array: Any) -> Any:
    """Values as of images scaled to 0..1."""
    return np.abs(array) if array.dtype.kind == "f" else array


def _wide(array: Any) -> Any:
    """Values as of images of bytes, for thresholds that small ones never reach."""
    return np.abs(array) * array.dtype.type(64) if array.dtype.kind == "f" else array


def _ensure_loads(original: ir.Model, failure: VerificationError) -> None:
    """Blame the original, not the result, where ONNX Runtime does not load that either.

    Raises:
        ModelError: See above.
    """
    try:
        runtime.working_inputs(original, session=check_session(original))
    except ModelError as error:
        raise ModelError(f"{str(error).rstrip('. ')}; --no-verify writes the model without any proof") from failure
    except DataError:
        return
