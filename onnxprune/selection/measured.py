"""How far a model's outputs move when some units of one group go and its consumers make up for them.

    curves = measure_effects(look, budget)          one `Curve` a group
    loss = curves[group].loss(kept_now, kept_then)

Each group is cut alone, to a few levels. Its consumers are fitted to their dense outputs with the units that are left,

    W_S = W G_:S (G_SS + damping)^-1,     b += (W - W_S) E[a]        G = E[a a^T] (less the means where b adapts)

(He et al. 2017, Channel Pruning, eq. 4, from the Gram matrices of the dense network), and the rest of the network is
run on a few samples: the KL divergence of class outputs, the distance of a detector's boxes and scores, the relative
squared error of others, to a power at which effects of several groups add up (`Reference.effect`). Between levels a
curve is straight. For the choice it is replaced by its lower convex hull, so that taking the least effect per cost
saved, step by step, is optimal at every step's end.
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


@dataclass(frozen=True, eq=False)
class Curve:
    """The effect of keeping fewer units of a group.

    Attributes:
        counts: Units left, falling, the first all of them.
        effects: Made convex over the units that go; 0 at the first.
    """

    counts: npt.NDArray[np.int64]
    effects: npt.NDArray[np.float64]

    def at(self, kept: int) -> float:
        """The effect at a count."""
        return float(np.interp(-kept, -self.counts, self.effects))

    def loss(self, now: int, then: int) -> float:
        """What going on from one count to a smaller one costs."""
        return self.at(then) - self.at(now)


def measure_effects(
    structure: Structure, groups: Sequence[Group], scores: Scores, evidence: Evidence, effort: Effort = "low"
) -> dict[Group, Curve]:
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
    return {group: _curve(structure, group, scores, evidence, effects, levels) for group in groups}


def effect_samples(structure: Structure, count: int, evidence: Evidence, effort: Effort) -> Batches:
    """Return the samples that the effects of cutting so many groups are measured on."""
    few = int(min(SAMPLES, max(_LEAST_SAMPLES, _affordable(count, effort))))
    return Batches.of(structure.model, evidence.held_inputs(few), few)


def _affordable(count: int, effort: Effort) -> float:
    """How many samples `RUNS` allows for so many groups."""
    return RUNS[effort] / max(1.0, count * len(LEVELS) / 2)


def _curve(
    structure: Structure, group: Group, scores: Scores, evidence: Evidence, effects: Effects, levels: Sequence[float]
) -> Curve:
    atoms = group.atoms[np.argsort(scores[group.atoms], kind="stable")]
    total = len(atoms)
    kept = sorted({max(1, round(level * total)) for level in levels} - {total}, reverse=True)
    consumers = [
        c for c in (consumer_of(structure, group, name, evidence) for name in evidence.layers) if c is not None
    ]
    counts, measured = [total], [0.0]
    for count in kept:
        removed = np.zeros(structure.terms.count, bool)
        removed[atoms[: total - count]] = True
        changed = {str(v.name): array for v, array in zeroed_units(structure, removed)}
        for consumer in consumers:
            changed |= consumer.compensated(removed, evidence)
        counts.append(count)
        measured.append(effects.of(changed))
    if total == 1 or counts[-1] > 1:
        counts.append(0 if total == 1 else 1)
        measured.append(max(measured) * 2 + 1e-9)
    return convex(np.array(counts), np.maximum.accumulate(measured))


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


def consumer_of(structure: Structure, group: Group, name: str, evidence: Evidence) -> ConsumerOf | None:
    """Return a layer as a consumer of a group; None where it reads none of its units."""
    layer = evidence.layers[name]
    site = next((s for s in group.sites if s.value.name == name and s.axis == layer.input_axis), None)
    if layer.groups != 1 or site is None:
        return None
    axis = structure.axes[site.value][site.axis]
    if isinstance(axis, Dynamic):
        return None
    rows, atoms = structure.members(axis)
    inside = np.isin(atoms, group.atoms)
    return ConsumerOf(layer, rows[inside], atoms[inside])
