"""How far a model's outputs move when some units of one group go and its consumers make up for them.

    measured = measure_effects(structure, groups, scores, evidence)
    loss = measured.losses(groups)[group](kept_now, kept_then)

Each group is cut alone, to a few levels. Its consumers are fitted to their dense outputs with the units that are left,

    W_S = W G_:S (G_SS + damping)^-1,     b += (W - W_S) E[a]        G = E[a a^T] (less the means where b adapts)

(He et al. 2017, Channel Pruning, eq. 4, from the Gram matrices of the dense network), and the rest of the network is
run on a few samples: the KL divergence of class outputs, the distance of a detector's boxes and scores, the relative
squared error of others (`Reference.effect`). Then all groups are cut together. Effects e_i are added to the power p at
which they come to the effect E of that, sum e_i^p = E^p: errors may add up, or each be the worse for the others.
Between levels a curve is straight, below the last it goes on as a power of the count. For the choice it is replaced by
its lower convex hull, so that taking the least effect per cost saved, step by step, is optimal at every step's end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Linear, tensor_of
from onnxprune.recipe.fields import Effort
from onnxprune.runtime.statistics import Moments
from onnxprune.runtime.stream.effects import Effects
from onnxprune.runtime.stream.gather import Batches
from onnxprune.scoring.evidence import DAMPING, Evidence
from onnxprune.scoring.units import Scores
from onnxprune.selection.by_cost import Loss
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.masking import zeroed_units
from onnxprune.structure.structure import Structure

Array = npt.NDArray[Any]

LEVELS = (0.875, 0.75, 0.6, 0.45, 0.3, 0.15)
"""Shares of a group's units that are left where its effect is measured."""

SAMPLES = 64
RUNS: Mapping[Effort, int] = {"low": 1000, "medium": 1000, "high": 4000}
"""By effort: so many runs of one sample through the network are spent on all groups; deep ones get fewer samples."""

_LEAST_SAMPLES = 8
_TOGETHER = (0.875, 0.75)  # shares of all groups that are left where they are cut together: deeper, scores saturate
_POWERS = (0.5, 1.5)  # the least and the greatest
_DEEPER = (1.0, 2.5)  # of the curves below the last level: least and greatest power of the count
_HALVINGS = 20  # of these, until the power is found


@dataclass(frozen=True, eq=False)
class Curve:
    """The effect of keeping fewer units of a group.

    Attributes:
        counts: Units left, falling, the first all of them.
        effects: 0 at the first; for the choice made convex over the units that go.
    """

    counts: npt.NDArray[np.int64]
    effects: npt.NDArray[np.float64]

    def at(self, kept: int) -> float:
        """The effect at a count."""
        return float(np.interp(-kept, -self.counts, self.effects))

    def loss(self, now: int, then: int) -> float:
        """What going on from one count to a smaller one costs."""
        return self.at(then) - self.at(now)


@dataclass(frozen=True, eq=False)
class Measured:
    """What groups lose.

    Attributes:
        curves: Of each group, in their order, effects to the power.
        power: At which effects add up.
    """

    curves: Sequence[Curve]
    power: float = 1.0

    def losses(self, groups: Sequence[Group]) -> dict[Group, Loss]:
        """What each group loses on the way from one count to a smaller one: see `Curve.loss`."""
        return {group: curve.loss for group, curve in zip(groups, self.curves, strict=True)}


def measure_effects(
    structure: Structure, groups: Sequence[Group], scores: Scores, evidence: Evidence, effort: Effort = "low"
) -> Measured:
    """Measure the curve of every group; the units of the lowest scores go first.

    Args:
        structure: The analysis of the model, which stays as it is.
        groups: The groups.
        scores: By atom id.
        evidence: Gram matrices of the model's layers, and samples to run it on.
        effort: How many samples it is run on, see `RUNS`.
    """
    levels = LEVELS if _affordable(len(groups), effort) >= _LEAST_SAMPLES else LEVELS[::2]
    model = evidence.structure.model  # of a merged decoder the branch that the samples take, by the same names
    effects = Effects(model, effect_samples(structure, len(groups), evidence, effort))
    look = _Look(structure, scores, evidence, effects)
    alone = [look.alone(group, levels) for group in groups]
    power = look.power(groups, alone)
    return Measured([convex(curve.counts, curve.effects**power) for curve in alone], power)


def power_of(apart: Sequence[Sequence[float]], together: Sequence[float]) -> float:
    """Return the power p at which effects add up: that of (sum e^p)^(1/p) = E, between .5 and 1.5.

    Args:
        apart: The effects e of some cuts, each made alone; a row for each time that all were made together.
        together: Their effects E where they were made together. Of several the mean of the logarithms counts.

    >>> power_of([[1.0, 1.0]], [2.0]), power_of([[1.0, 1.0]], [2.0**1.25])
    (1.0, 0.8)
    """
    rows = [(np.array([e for e in row if e > 0]), E) for row, E in zip(apart, together, strict=True)]
    rows = [(row, E) for row, E in rows if len(row) > 1 and 0 < E < np.inf and np.isfinite(row).all()]
    if not rows:
        return 1.0

    def excess(power: float) -> float:  # falls with the power
        sums = [np.log(((row / row.max()) ** power).sum()) / power + np.log(row.max() / E) for row, E in rows]
        return float(sum(sums))

    low, high = _POWERS
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return round(low, 2)


def effect_samples(structure: Structure, count: int, evidence: Evidence, effort: Effort) -> Batches:
    """Return the samples that the effects of cutting so many groups are measured on."""
    few = int(min(SAMPLES, max(_LEAST_SAMPLES, _affordable(count, effort))))
    return Batches.of(structure.model, evidence.held_inputs(few), few)


def _affordable(count: int, effort: Effort) -> float:
    """How many samples `RUNS` allows for so many groups."""
    return RUNS[effort] / max(1.0, count * len(LEVELS) / 2)


@dataclass(frozen=True, eq=False)
class _Look:
    """What cuts do to the outputs of a model, consumers having made up for them."""

    structure: Structure
    scores: Scores
    evidence: Evidence
    effects: Effects

    def alone(self, group: Group, levels: Sequence[float]) -> Curve:
        """The effects of cutting one group, never falling."""
        total = len(group)
        consumers = consumers_of(self.structure, [group], self.evidence)
        counts, measured = [total], [0.0]
        for count in sorted({_kept(group, level) for level in levels} - {total}, reverse=True):
            counts.append(count)
            measured.append(self._effect([(group, count)], consumers))
        curve = Curve(np.array(counts), np.maximum.accumulate(measured))
        fewer, lost = deeper(curve)
        return Curve(np.append(curve.counts, fewer), np.append(curve.effects, lost))

    def power(self, groups: Sequence[Group], alone: Sequence[Curve]) -> float:
        """The power at which the effects of groups, each cut alone, come to what they do together."""
        if len(groups) < 2:
            return 1.0
        consumers = consumers_of(self.structure, groups, self.evidence)
        cuts = [[(group, _kept(group, share)) for group in groups] for share in _TOGETHER]
        apart = [[curve.at(count) for curve, (_, count) in zip(alone, row, strict=True)] for row in cuts]
        return power_of(apart, [self._effect(row, consumers) for row in cuts])

    def _effect(self, cuts: Sequence[tuple[Group, int]], consumers: Sequence[ConsumerOf]) -> float:
        """The effect of leaving so many units of each of some groups."""
        removed = np.zeros(self.structure.terms.count, bool)
        for group, count in cuts:
            atoms = group.atoms[np.argsort(self.scores[group.atoms], kind="stable")]
            removed[atoms[: len(group) - count]] = True
        changed: dict[str, Array] = {}
        for consumer in consumers:
            changed |= consumer.compensated(removed, self.evidence)
        changed |= {str(v.name): array for v, array in zeroed_units(self.structure, removed, changed)}
        return self.effects.of(changed)


def deeper(curve: Curve) -> tuple[list[int], list[float]]:
    """Return counts below the last that was measured, by halves down to one unit, and their effects.

    Effects go on as a power of the count, e ~ n^-a, with the a of the last two counts. A straight line is far too low:
    of 64 channels in front of ten classes 10 lose next to nothing, 4 nearly all.

    >>> deeper(Curve(np.array([16, 8, 4]), np.array([0.0, 0.1, 0.4])))
    ([2, 1], [1.6, 6.4])
    """
    left, effect = int(curve.counts[-1]), float(curve.effects[-1])
    if left <= 1:
        return ([], []) if len(curve.counts) > 1 else ([0], [1e-9])
    before, lost = int(curve.counts[-2]), max(float(curve.effects[-2]), 1e-12)
    power = np.clip(np.log(max(effect, 1e-12) / lost) / np.log(before / left), *_DEEPER)
    counts = []
    while left > 1:
        left //= 2
        counts.append(left)
    return counts, [max(effect, 1e-9) * (int(curve.counts[-1]) / count) ** float(power) for count in counts]


def _kept(group: Group, share: float) -> int:
    return max(1, round(share * len(group)))


def convex(counts: npt.NDArray[np.int64], effects: npt.NDArray[np.float64]) -> Curve:
    """The lower convex hull of a curve over the units that go."""
    kept: list[int] = []
    gone = (counts[0] - counts).astype(np.float64)
    for i in range(len(counts)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (effects[b] - effects[a]) * (gone[i] - gone[a]) < (effects[i] - effects[a]) * (gone[b] - gone[a]):
                break
            kept.pop()
        kept.append(i)
    return Curve(counts[kept], np.asarray(effects[kept], np.float64))


@dataclass(frozen=True, eq=False)
class ConsumerOf:
    """A layer that reads the units of a group: the index of its input axis and the atom, for each that may go."""

    layer: Linear
    rows: npt.NDArray[np.int64]
    atoms: npt.NDArray[np.int64]

    def compensated(self, removed: npt.NDArray[np.bool_], evidence: Evidence) -> Mapping[str, Array]:
        """Return the layer's constants, by name, fitted to its dense outputs without the removed units."""
        layer, places = self.layer, self.layer.places
        matrix = layer.matrix()
        gone = np.unique(self.rows[removed[self.atoms]])
        if not len(gone):
            return {}
        columns = (gone[:, None] * places + np.arange(places)).reshape(-1)
        left = np.setdiff1d(np.arange(matrix.shape[2]), columns)
        fitted, change = refit(matrix, evidence.moments(layer.name), left, with_bias=layer.shift is not None)
        changed = {layer.name: layer.from_matrix(fitted / layer.scale).astype(tensor_of(layer.weight).numpy().dtype)}
        if layer.shift is not None:
            value, sign = layer.shift
            old = tensor_of(value).numpy()
            changed[str(value.name)] = (old + sign * change.reshape(old.shape)).astype(old.dtype)
        return changed


def refit(matrix: Array, moments: Moments, left: npt.NDArray[np.int64], *, with_bias: bool) -> tuple[Array, Array]:
    """Return weights [g, O, K] that are zero but for the columns left, and the change of the bias [g, O]."""
    mean = moments.a / moments.rows
    gram = moments.aa / moments.rows
    if with_bias:
        gram = gram - mean[:, :, None] * mean[:, None, :]
    fitted = np.zeros_like(matrix)
    for g, block in enumerate(gram):
        inner = block[np.ix_(left, left)].copy()
        inner.flat[:: len(left) + 1] += DAMPING * (float(np.mean(np.diag(block))) or 1.0)
        # the fit is drawn to the weights as they are: damping holds what the samples do not tell
        pull = DAMPING * (float(np.mean(np.diag(block))) or 1.0)
        target = matrix[g] @ block[:, left] + pull * matrix[g][:, left]
        fitted[g][:, left] = np.linalg.solve(inner, target.T).T
    change = np.einsum("gok,gk->go", matrix - fitted, mean)
    return fitted, change


def consumers_of(structure: Structure, groups: Sequence[Group], evidence: Evidence) -> list[ConsumerOf]:
    """Return the layers that read units of some groups."""
    read = {(site.value.name, site.axis): site for group in groups for site in group.sites}
    mine = np.concatenate([group.atoms for group in groups])
    found = []
    for name, layer in evidence.layers.items():
        site = read.get((name, layer.input_axis))
        if layer.groups != 1 or site is None:
            continue
        axis = structure.axes[site.value][site.axis]
        if not isinstance(axis, Dynamic):
            rows, atoms = structure.members(axis)
            inside = np.isin(atoms, mine)
            found.append(ConsumerOf(layer, rows[inside], atoms[inside]))
    return found
