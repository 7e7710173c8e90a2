"""The proof that *removed == masked*, and what it reaches.

A smaller model must compute what its twin with the removed units zeroed computes. Equal outputs prove that only where
the outputs say something: they must be finite and not empty, and they must react, to the masking or at least to the
input. NaN equal to NaN is no evidence, nor is a constant equal to itself. Where the first inputs prove nothing, others
are tried; then both models are compared in front of what hides the difference, such as a threshold or an ArgMax.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.graph.bounded import ROUNDING, bounded_outputs
from onnxprune.graph.operators import operator_of
from onnxprune.runtime import Feeds
from onnxprune.runtime.in_blocks import check_session, outputs_of, run_each
from onnxprune.runtime.inputs import Ran
from onnxprune.verification.candidates import candidates
from onnxprune.verification.comparable import comparable

TOLERANCE = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 5e-2}
"""Largest difference between removed and masked, relative to the largest output; 1e-4 for all other types."""

_LARGEST_LIMIT = 0.05  # where rounding alone moves a model by more than this, equality cannot be judged
_ROUNDING_FACTOR = 16  # two orders of summation differ by several roundings of each number
_CONSTANT = "is constant: the same whatever the input and whatever is zeroed"

Outputs = Mapping[str, Any]


class Differs(VerificationError):
    """Removed and masked differ, by `difference` of the largest output."""

    def __init__(self, difference: float, limit: float) -> None:
        super().__init__(
            f"the pruned model differs from the original with the same weights zeroed by {difference:.2g} of the "
            f"largest output (allowed: {limit:.0e}); nothing was written, please report this model"
        )
        self.difference = difference


@dataclass(frozen=True)
class Proof:
    """What a comparison of removed and masked proved.

    Attributes:
        difference: The largest difference, relative to the largest output.
        limit: The largest difference allowed.
        unproved: Why nothing was proved; "" where something was.
        silent: For each output that says nothing, why: "is NaN", "is empty", "is the same whatever the input is".
        compared: The values that were compared; the outputs, or values in front of what hides a difference.
        outputs: How many outputs the model has.
        batches: The inputs of the comparison.
    """

    difference: float = 0.0
    limit: float = 1e-4
    unproved: str = ""
    silent: Mapping[str, str] | None = None
    compared: tuple[str, ...] = ()
    outputs: int = 0
    batches: tuple[Feeds, ...] = field(default=(), compare=False, repr=False)

    @property
    def note(self) -> str:
        """What a person should know of the proof; "" where every output says something."""
        if not self.silent:
            return ""
        listed = "; ".join(f"output '{name}' {why}" for name, why in self.silent.items())
        if self.unproved:
            return f"nothing was proved: {listed}"
        if all(name in self.silent for name in self.compared) or len(self.silent) == self.outputs:
            return f"{listed}: this proves nothing, so the comparison was made in front of it, on {self.compared[0]!r}"
        return f"{listed}: it was left out of the proof"


def tolerance_of(model: ir.Model) -> float:
    """Return how far removed and masked may be apart: by the least precise float type among the weights."""
    types = {v.dtype for v in model.graph.initializers.values() if v.dtype is not None}
    return max((TOLERANCE.get(t, 1e-4) for t in types), default=1e-4)


def prove(original: ir.Model, masked: ir.Model, pruned: ir.Model, *, seed: int = 0) -> Proof:
    """Compare a model after a removal with its masked twin.

    Args:
        original: The model before the removal.
        masked: The same with what was removed zeroed; the model itself where what was removed had no effect.
        pruned: The model after the removal, all other numbers as they were.
        seed: Of the random inputs.

    Raises:
        Differs: They differ.
        VerificationError: The pruned model does not load or run.
        DataError: No inputs are found that the masked twin runs with.
    """
    original, masked, pruned = (comparable(model) for model in (original, masked, pruned))
    best: Proof | None = None
    tried: list[list[Feeds]] = []
    for ran in candidates(original, masked, seed):
        proof = _compare(original, masked, pruned, ran)
        if not proof.unproved:
            return proof
        best = best or proof
        tried.append([feeds for feeds, _ in ran])
    assert best is not None
    return _before_the_end(original, masked, pruned, tried, best)


def _compare(original: ir.Model, masked: ir.Model, pruned: ir.Model, ran: Sequence[Ran]) -> Proof:
    """Compare on one set of inputs, of which it is known what the twin gives.

    Raises:
        Differs: They differ.
        VerificationError: The pruned model does not load or run.
    """
    batches, twin = [feeds for feeds, _ in ran], [outputs for _, outputs in ran]
    whole = twin if original is masked else outputs_of(original, batches)
    silent = _silent(masked, batches, twin, whole)
    actual = outputs_of(pruned, batches)
    judged = judge(masked, batches, twin, actual)
    silent |= judged.unclear
    names = tuple(name for name in twin[0] if name not in silent)
    difference, limit = judged.difference, judged.limit
    if not difference <= limit:
        raise Differs(difference, limit)
    listed = "; ".join(f"output '{name}' {why}" for name, why in silent.items())
    unproved = "" if names else listed or "the model has no output"
    return Proof(difference, limit, unproved, silent, names, len(twin[0]), tuple(batches))


def other_inputs(feeds: Feeds) -> Feeds:
    """Return other inputs of the same shapes: floats scaled and shifted, the rest in another order."""
    return {name: _shaken_array(array) for name, array in feeds.items()}


def _shaken_array(array: Any) -> Any:
    if array.dtype.kind == "f":
        return (array * array.dtype.type(-0.7) + array.dtype.type(0.3)).astype(array.dtype)
    return np.flip(array).copy() if array.ndim else array


def _silent(
    masked: ir.Model, batches: Sequence[Feeds], twin: Sequence[Outputs], whole: Sequence[Outputs]
) -> dict[str, str]:
    """Why outputs say nothing, by name; without those that say something."""
    silent: dict[str, str] = {}
    for name in twin[0]:
        values = [outputs[name] for outputs in twin]
        if any(map(_is_list, values)):
            continue  # a sequence: compared part by part
        if why := says_nothing(values):
            silent[name] = why
        elif all(_same(value, outputs[name]) for value, outputs in zip(values, whole, strict=True)):
            silent[name] = _CONSTANT  # or what was removed had no effect here, and it does react to the input
    still = [name for name, why in silent.items() if why == _CONSTANT]
    for name in _reacting(masked, batches, twin, still) if still else ():
        del silent[name]
    return silent


def _reacting(masked: ir.Model, batches: Sequence[Feeds], twin: Sequence[Outputs], names: Sequence[str]) -> list[str]:
    """Which outputs are others for other inputs, of those that the twin runs."""
    session = check_session(masked, error=VerificationError)
    reacting: dict[str, None] = {}
    for feeds, expected in zip(batches, twin, strict=True):
        with contextlib.suppress(OnnxPruneError):
            outputs = runtime.run(session, other_inputs(feeds), error=VerificationError)
            reacting |= {name: None for name in names if not _same(expected[name], outputs[name])}
    return list(reacting)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def says_nothing(arrays: Sequence[Any]) -> str:
    """Say why the numbers of an output are no evidence, whatever they are compared with; "" where they are."""
    arrays = [np.asarray(array) for array in arrays]
    if all(array.size == 0 for array in arrays):
        return "is empty (it has no elements)"
    if all(array.dtype.kind in "fc" and not np.isfinite(array.astype(np.complex128)).any() for array in arrays):
        return "is NaN or infinite throughout"
    return ""


def _same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))


@dataclass(frozen=True)
class Judgement:
    """How far removed and masked are apart, and what is allowed.

    Attributes:
        difference: The largest difference of the outputs that can be judged.
        limit: What is allowed of it: the tolerance of the types, or more where rounding alone moves the model by more.
        unclear: Outputs that rounding alone moves by so much that equality cannot be judged, with the reason.
    """

    difference: float
    limit: float
    unclear: Mapping[str, str]


def judge(masked: ir.Model, batches: Sequence[Feeds], twin: Sequence[Outputs], actual: Sequence[Outputs]) -> Judgement:
    """Judge a difference by the model's own: between levels of optimisation, and for inputs moved by their last place.

    Args:
        masked: The masked twin.
        batches: Inputs.
        twin, actual: What the twin and the pruned model give for them.
    """
    differences, limit = differences_to_masked(masked, twin, actual), tolerance_of(masked)
    if all(difference <= limit for difference in differences.values()):
        return Judgement(max(differences.values(), default=0.0), limit, {})
    moved = {name: _ROUNDING_FACTOR * part for name, part in _rounding(masked, batches, twin).items()}
    limits = {name: max(limit, min(_LARGEST_LIMIT, moved.get(name, 0.0))) for name in differences}
    unclear = {
        name: f"is ill-conditioned: rounding alone moves it by {moved[name] / _ROUNDING_FACTOR:.2g} of its largest"
        for name, difference in differences.items()
        if not difference <= limits[name] and moved.get(name, 0.0) > _LARGEST_LIMIT
    }
    clear = {name: difference for name, difference in differences.items() if name not in unclear}
    worst = max(clear, key=lambda name: clear[name] / limits[name], default=None)
    return Judgement(0.0, limit, unclear) if worst is None else Judgement(clear[worst], limits[worst], unclear)


def differences_to_masked(
    masked: ir.Model, expected: Sequence[Outputs], actual: Sequence[Outputs]
) -> Mapping[str, float]:
    """Return the largest difference of each output; of bounded ones relative to their range where it is noise."""
    in_a_range = bounded_outputs(masked)
    differences = [
        (name, output)
        for a, b in zip(expected, actual, strict=True)
        for name, output in runtime.compare_outputs(a, b).outputs.items()
    ]
    noise = {n for n in in_a_range if all(o.max_abs <= ROUNDING for name, o in differences if name == n)}
    largest: dict[str, float] = {}
    for name, output in differences:
        gap = min(output.max_rel, output.max_abs) if name in noise else output.max_rel
        largest[name] = max(largest.get(name, 0.0), gap)
    return largest


def _rounding(masked: ir.Model, batches: Sequence[Feeds], twin: Sequence[Outputs]) -> dict[str, float]:
    """How far rounding alone moves each output: those for inputs that differ in their last place, and for another
    level of optimisation."""
    rng = np.random.default_rng(0)
    nudged = [{name: _nudged(rng, array) for name, array in feeds.items()} for feeds in batches]
    moved = differences_to_masked(masked, twin, outputs_of(masked, nudged))
    session = check_session(masked, optimize="off", error=VerificationError)
    plain = run_each(session, batches, error=VerificationError)
    levels = differences_to_masked(masked, twin, plain)
    return {name: max(moved[name], levels[name]) for name in moved}


def _nudged(rng: np.random.Generator, array: Any) -> Any:
    if array.dtype.kind != "f":
        return array
    step = np.finfo(array.dtype).eps
    return (array * (1 + step * rng.choice([-1.0, 1.0], array.shape))).astype(array.dtype)


# -- in front of what hides a difference ------------------------------------------------------------------------------


def _before_the_end(
    original: ir.Model, masked: ir.Model, pruned: ir.Model, tried: Sequence[list[Feeds]], without: Proof
) -> Proof:
    """Compare the values that the hiding end of the graph reads; give back `without` where these prove nothing."""
    shared = set(_values_by_name(pruned)) & set(_values_by_name(original))
    known = {str(value.name) for value in masked.graph.outputs}  # they proved nothing on these very inputs
    names = [name for name in _in_front(masked) if name in shared and name not in known]
    for batches in tried if names else ():
        twin = outputs_of(_with_outputs(masked, names), batches)
        (smaller,) = outputs_of(_with_outputs(pruned, names), batches[:1])
        lost = {name for name in names if np.shape(twin[0][name]) != np.shape(smaller[name])}  # units
        names = [name for name in names if name not in lost]
        if not names:
            return without
        before, zeroed, after = (_with_outputs(model, names) for model in (original, masked, pruned))
        ran = [(feeds, {n: v for n, v in o.items() if n not in lost}) for feeds, o in zip(batches, twin, strict=True)]
        proof = _compare(before, zeroed, after, ran)
        inner = tuple(name for name in proof.compared if name in names)
        if inner:
            return replace(proof, unproved="", silent=without.silent, compared=inner, outputs=without.outputs)
    return without


def _in_front(model: ir.Model) -> list[str]:
    """The nearest values behind which an operator may hide a difference, from the outputs backwards."""
    names: dict[str, None] = {}
    seen: set[ir.Value] = set()
    waiting = list(model.graph.outputs)
    while waiting:
        value = waiting.pop(0)
        node = value.producer()
        if value in seen or node is None or node.graph is not model.graph:
            continue
        seen.add(value)
        if operator_of(node).weights:
            names[str(value.name)] = None
        else:
            waiting += [v for v in node.inputs if v is not None]
    return list(names)


def _values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for node in model.graph for value in node.outputs}


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy in which the named values are outputs too."""
    copy = model.clone()
    present = {value.name for value in copy.graph.outputs}
    by_name = _values_by_name(copy)
    for name in names:
        if name not in present:
            by_name[name].dtype = by_name[name].dtype or ir.DataType.FLOAT
            copy.graph.outputs.append(by_name[name])
    return copy
