"""How much a model suffers when a share of one layer, or of one group of units, goes and nothing else.

table = scan(weights, criterion, measure)                           single weights, layer by layer
table = scan_units(structure, weights, groups, scores, measure)     whole units, group by group
shares = shares_by_sensitivity(table, 0.9)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Inputs, batches
from onnxprune.graph.measuring import Builder
from onnxprune.graph.tensors import Array
from onnxprune.runtime.jobs import each
from onnxprune.runtime.stream.apart import Apart
from onnxprune.scoring.registry import Criterion
from onnxprune.scoring.units import Scores
from onnxprune.selection.weights import least_salient
from onnxprune.structure.groups import Group
from onnxprune.structure.masking import constant_content, zero_of, zeroed_units
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

LEVELS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
UNIT_LEVELS = (0.25, 0.5, 0.75, 0.9)
SAMPLES = 256
"""A scan looks at so many samples at most: it runs the model once for every layer and level."""

Point = tuple[float, float]
Measure = Callable[[Mapping[str, Array]], float]
"""From constants that are changed, by name, to what is measured of the model with them."""


@dataclass(frozen=True)
class Sensitivity:
    """How much a model suffers when a share of one layer goes and nothing else.

    Attributes:
        names: The weights, or the groups of units.
        sizes: Their numbers of parameters.
        levels: Shares that were tried, rising.
        errors: How far the model's outputs moved (see `OutputError`), shape (weights, levels).
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    levels: tuple[float, ...]
    errors: npt.NDArray[np.float64]

    def rows(self) -> list[dict[str, object]]:
        """Return one row a layer for a table."""
        return [
            {"name": name, "parameters": size}
            | {f"{level:.0%}": float(e) for level, e in zip(self.levels, row, strict=True)}
            for name, size, row in zip(self.names, self.sizes, self.errors, strict=True)
        ]

    def as_notes(self) -> dict[str, Any]:
        """Return plain data for JSON, from which `from_notes` makes the same table to the last bit."""
        return {"names": self.names, "sizes": self.sizes, "levels": self.levels, "errors": self.errors.tolist()}

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> Sensitivity:
        """Return the table that `as_notes` told."""
        names, sizes, levels = (tuple(notes[key]) for key in ("names", "sizes", "levels"))
        return cls(names, sizes, levels, np.array(notes["errors"], np.float64).reshape(len(names), len(levels)))

    def curve(self, number: int) -> tuple[list[float], list[float]]:
        """Return shares from 0 to the last level and the errors at them, made to rise."""
        errors = np.maximum.accumulate([0.0, *self.errors[number].tolist()])
        return [0.0, *self.levels], errors.tolist()


def scan(
    weights: Sequence[Weight], criterion: Criterion, measure: Measure, *, levels: Sequence[float] = LEVELS,
    seed: int = 0, progress: Callable[[str], None] | None = None,
) -> Sensitivity:  # fmt: skip
    """Prune one layer at a time to each level and measure the model (Han et al. 2015, section 4.1 and figure 6).

    Layers of subgraphs are not measured: they count as what suffers most.

    Args:
        weights: The layers, of one normalised model. It stays as it is.
        criterion: What goes first.
        measure: What is measured, such as `OutputError`.
        levels: Shares to try, rising.
        seed: For criteria that draw at random.
        progress: Called with the name of each layer.
    """
    main = main_constants(weights[0].structure.model)

    def changes() -> Iterator[Mapping[str, Array]]:
        for i, weight in enumerate(weights):
            if weight.name not in main:
                continue
            if progress is not None:
                progress(weight.name)
            saliency = criterion.saliency(weight, np.random.default_rng([seed, i]))
            for level in levels:
                mask = least_salient(saliency, round(level * weight.size))
                array = constant_content(weight.value).copy()
                np.copyto(array, zero_of(weight.structure.fills.get(weight.value), array), where=~mask)
                yield {weight.name: array}

    errors = _measured_at([weight.name in main for weight in weights], len(levels), measure, changes())
    sizes = tuple(w.size for w in weights)
    return Sensitivity(tuple(w.name for w in weights), sizes, tuple(levels), _filled(errors))


def scan_units(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], scores: Scores, measure: Measure, *,
    levels: Sequence[float] = UNIT_LEVELS, progress: Callable[[str], None] | None = None,
) -> Sensitivity:  # fmt: skip
    """Zero the units of one group at a time, those of the lowest scores first, to each level; measure the model.

    A normalisation that runs over the group's axis still sees the zeroed units. Groups of subgraphs are not measured:
    they count as what suffers most.

    Args:
        structure: The analysis of the model, which stays as it is.
        weights: The weights that count.
        groups: The groups of units.
        scores: By atom id.
        measure: What is measured, such as `OutputError`.
        levels: Shares to try, rising.
        progress: Called with the name of each group.
    """
    main = main_constants(structure.model)
    reached = [any(site.value.name in main for site in group.sites) for group in groups]

    def changes() -> Iterator[Mapping[str, Array]]:
        for group in compress(groups, reached):
            if progress is not None:
                progress(group.name)
            order = group.atoms[np.argsort(scores[group.atoms], kind="stable")]
            for level in levels:
                removed = np.zeros(structure.terms.count, bool)
                removed[order[: round(level * len(order))]] = True
                yield {str(v.name): array for v, array in zeroed_units(structure, removed)}

    errors = _measured_at(reached, len(levels), measure, changes())
    sizes = tuple(size_of_units(structure, weights, group) for group in groups)
    names = tuple(f"{group.name} ({group.kind})" for group in groups)
    return Sensitivity(names, sizes, tuple(levels), _filled(errors))


def _measured_at(
    reached: Sequence[bool], levels: int, measure: Measure, changes: Iterable[Mapping[str, Array]]
) -> npt.NDArray[np.float64]:
    """What is measured of each change, side by side where that is asked for; NaN in rows that none reaches."""
    errors = np.full((len(reached), levels), np.nan)
    rows = np.flatnonzero(reached)
    for number, error in each(_measured, measure, changes):
        errors[rows[number // levels], number % levels] = error
    return errors


def _measured(measure: Measure, changed: Mapping[str, Array]) -> float:
    return measure(changed)


def main_constants(model: ir.Model) -> set[str]:
    """Return the names of what a scan can give other numbers: values of the main graph."""
    return {*model.graph.initializers, *(str(out.name) for node in model.graph for out in node.outputs)}


def _filled(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows that were not measured, with the largest of each level."""
    measured = errors[~np.isnan(errors).any(axis=1)]
    return np.where(np.isnan(errors), measured.max(axis=0, initial=0.0), errors)


def size_of_units(structure: Structure, weights: Sequence[Weight], group: Group) -> int:
    """Return how many parameters go when all units of a group do, counted axis by axis."""
    site_axes = {(site.value, site.axis) for site in group.sites}
    total = 0.0
    for weight in weights:
        for axis, extent in enumerate(weight.shape):
            ids = structure.ids(weight.value, axis) if (weight.value, axis) in site_axes else None
            if ids is not None:
                rows, atoms = structure.members(ids)
                total += weight.size * len(np.unique(rows[np.isin(atoms, group.atoms)])) / extent
    return round(total)


def zero_share(weight: Weight) -> float:
    """Return the share of a weight that is zero already."""
    return 1 - np.count_nonzero(weight.numbers()) / weight.size


def shares_by_sensitivity(table: Sensitivity, sparsity: float, gone: Sequence[float] | None = None) -> dict[str, float]:
    """Choose a level for each layer so that errors, taken as additive, are least for the weights that go.

    Steps go in the order of error per weight (along the lower convex hull of each layer's curve, which makes the greedy
    choice optimal at every step's end); the last one is taken in part, so that the sparsity is reached exactly.

    Args:
        table: What a scan found.
        sparsity: The share of all weights that goes.
        gone: The share of each layer that went before, which is the least that goes of it.

    Returns:
        By weight name, the share that goes.
    """
    shares = np.zeros(len(table.sizes)) if gone is None else np.array(gone, np.float64)
    steps = []
    for i, size in enumerate(table.sizes):
        for (x0, y0), (x1, y1) in _hull(*table.curve(i)):
            steps.append(((y1 - y0) / ((x1 - x0) * size), i, x0, x1))
        steps.append((np.inf, i, table.levels[-1], 1.0))  # beyond what was measured, only where all else is gone
    left = sparsity * sum(table.sizes) - float(np.dot(shares, table.sizes))
    for _, i, start, stop in sorted(steps):
        start = max(start, float(shares[i]))
        taken = min(left, (stop - start) * table.sizes[i])
        if taken > 0:
            shares[i] = start + taken / table.sizes[i]
            left -= taken
    return dict(zip(table.names, shares.tolist(), strict=True))


class OutputError:
    """How far a model's outputs move with other numbers in some constants: `Apart` on unlabelled samples.

    Args:
        model: The model, which stays as it is.
        inputs: Unlabelled samples by input name; the first `SAMPLES` are run.
        batch: Samples run at once.
    """

    def __init__(self, model: ir.Model, inputs: Inputs, batch: int = 64) -> None:
        few = {name: array[:SAMPLES] if np.ndim(array) else array for name, array in inputs.items()}
        self._model = model
        self._apart = Apart(model, batches(model, few, batch))

    def __call__(self, changed: Mapping[str, Array]) -> float:
        """Run the model beside itself; 0 where nothing is changed."""
        if not changed:
            return 0.0
        other = self._model.clone()
        replace_constants(other, changed)
        return self._apart.of(other)


def replace_constants(model: ir.Model, changed: Mapping[str, Array]) -> None:
    """Put other numbers into constants of a model's main graph, by name."""
    build = Builder(model)
    for value in [*model.graph.initializers.values(), *(out for node in model.graph for out in node.outputs)]:
        name = str(value.name)
        if name in changed:
            value.replace_all_uses_with(build.constant(changed[name]))


def _hull(x: Sequence[float], y: Sequence[float]) -> list[tuple[Point, Point]]:
    """The segments of the lower convex hull of points with rising x."""
    kept: list[Point] = []
    for point in zip(x, y, strict=True):
        while len(kept) > 1 and _above(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return list(zip(kept, kept[1:], strict=False))


def _above(a: Point, b: Point, c: Point) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
