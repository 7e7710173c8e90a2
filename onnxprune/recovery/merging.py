"""Neuron merging: what a removed unit did is taken over by the unit most like it. It needs no data.

For a removed unit i and a unit j that is left, with incoming weights f (as they act, a BatchNormalization between them
and the activation folded in) and cosine(f_i, f_j) large, x_i is about s x_j with s = |f_i| / |f_j|, and stays so behind
everything that is positively homogeneous and the same for both (ReLU, pooling). So every consumer gets

    W[:, j] += s W[:, i]

(Kim et al. 2020, Neuron Merging: Compensating for Pruned Neurons, section 3.2 and eq. 6). The bias counts as one more
incoming weight; behind a BatchNormalization (section 3.3) j is the unit of the least
lambda (1 - cosine) + (1 - lambda) |c_i / s - c_j|, c the shifts, the second distance brought to [0, 1] over all j.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.linear import Linear, linear_layers, set_numbers, tensor_of
from onnxprune.recovery.producers import Units, units_read_by
from onnxprune.runtime.probe import known_facts
from onnxprune.structure.analysis import analyse
from onnxprune.structure.rewrite import Kept

THRESHOLD, THRESHOLD_BATCHNORM = 0.45, 0.1
"""Least cosine of a merge, and the same behind a BatchNormalization, whose statistics narrow the choice (section 4)."""

LAMBDA = 0.85
"""How much the cosine counts against the shifts, behind a BatchNormalization (section 4)."""


@dataclass(frozen=True)
class Merging:
    """What was done.

    Attributes:
        merged: By consumer, how many of the units that it lost were merged into others.
        lost: By consumer, how many it lost.
        skipped: Consumers that lost units and were left as they are, with the reason.
    """

    merged: Mapping[str, int]
    lost: Mapping[str, int]
    skipped: Mapping[str, str]


def merge_units(dense: ir.Model, pruned: ir.Model, kept: Kept) -> Merging:
    """Let the units that are left take over what removed ones did, in place, layer by layer.

    Args:
        dense: The model before pruning, normalised. It stays as it is.
        pruned: The model after, with the weights that pruning left it.
        kept: The kept indices of cut constants, by name and axis.
    """
    structure = analyse(dense, known_facts(dense))
    originals = {str(x.output.name): x for x in linear_layers(dense)[0]}
    merged, lost, skipped = {}, {}, {}
    for layer in linear_layers(pruned)[0]:
        if layer.input_axis not in kept.get(layer.name, {}):
            continue
        original = originals.get(str(layer.output.name))
        units = "it has no counterpart in the dense model" if original is None else units_read_by(structure, original)
        if original is None or isinstance(units, str):
            skipped[layer.name] = str(units)
            continue
        lost[layer.name], merged[layer.name] = _merge_into(layer, original, units, kept)
    return Merging(merged, lost, skipped)


def best_partner(units: Units, i: int, left: npt.NDArray[np.int64]) -> tuple[int, float] | None:
    """Return the unit of those left that unit i is merged into, and the factor; None where none is like it."""
    filters = units.filters if units.batchnorm else np.hstack([units.filters, units.shifts[:, None]])
    norms = np.linalg.norm(filters, axis=1)
    usable = left[norms[left] > 0]
    if not norms[i] or not len(usable):
        return None
    cosine = filters[usable] @ filters[i] / (norms[usable] * norms[i])
    factor = norms[i] / norms[usable]
    distance = 1 - cosine
    if units.batchnorm:
        gap = np.abs(units.shifts[i] / factor - units.shifts[usable])
        spread = float(np.ptp(gap)) or 1.0
        distance = LAMBDA * distance + (1 - LAMBDA) * (gap - gap.min()) / spread
    best = int(np.argmin(distance))
    if cosine[best] < (THRESHOLD_BATCHNORM if units.batchnorm else THRESHOLD):
        return None
    return int(usable[best]), float(factor[best])


def _merge_into(layer: Linear, original: Linear, units: Units, kept: Kept) -> tuple[int, int]:
    """Merge the units that one consumer lost; returns how many it lost and how many were merged.

    What is written is the dense layer's weights and what they take over, so that steps of pruning do not add up.
    Weights that are zero stay zero.
    """
    axes = kept[layer.name]
    columns = axes[layer.input_axis]
    dense = tensor_of(original.weight).numpy().astype(np.float64)
    place = np.full(dense.shape[original.input_axis], -1)
    place[columns] = np.arange(len(columns))
    left = np.array([u for u, c in enumerate(units.columns) if (place[c] >= 0).all()], np.int64)
    gone = [u for u, c in enumerate(units.columns) if (place[c] < 0).all()]
    before = np.moveaxis(dense, original.input_axis, 0)
    if layer.output_axis in axes:  # the outputs' axis is the next one now
        before = np.take(before, axes[layer.output_axis], axis=1)
    after, merged = before[columns], 0
    for i in gone:
        partner = best_partner(units, i, left)
        if partner is not None:
            j, factor = partner
            after[place[units.columns[j]]] += factor * before[units.columns[i]]
            merged += 1
    if merged:
        after = np.moveaxis(after, 0, layer.input_axis)
        set_numbers(layer.weight, np.where(tensor_of(layer.weight).numpy() != 0, after, 0.0))
    return len(gone), merged
