"""Pruning methods as settings: what goes (structure), by which score (criterion), how much of each layer (allocation).

`cut(dense, method, ratio)` prunes a trained file until all parameters / non-zero parameters is `ratio`, or the nearest
that whole units allow. Every layer may be pruned, the first and the last too. Zeros stay in the graph as it was;
channels are cut out of it by `RemoveUnits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from prunebench_count import parameters

import onnxprune
from onnxprune.passes import RemoveUnits, Tidy
from onnxprune.pipeline.prepare import prepare
from onnxprune.recipe.granularity import parse_pattern
from onnxprune.scoring import Criterion, Evidence, Weight, find_criterion, prunable_weights, unit_scores
from onnxprune.selection import UnitBudget, select_weights
from onnxprune.selection.allocation import ALLOCATIONS, masks_of_shares
from onnxprune.selection.patterns import pattern_masks
from onnxprune.selection.unit_allocation import UNIT_ALLOCATIONS, UnitContext
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.training import Masks, apply_masks

Flags = npt.NDArray[np.bool_]
PATTERNS = {2: "2:4", 4: "1:4"}
"""The N:M patterns of sparse tensor cores, by the compression of the layers that they fit."""

STEPS = 20
BISECTIONS = 24


@dataclass(frozen=True)
class Method:
    """One way to prune.

    Attributes:
        structure: weights, n:m, a block such as block:1x4, or channels.
        criterion: A name of the registry.
        allocation: A name of the registries; or magnitude: what goes of each layer is as much as magnitude takes of it
            (Blalock et al. 2020, section 7.2), of weights ranked globally, of units by cost; or iterative: globally in
            `STEPS` steps, scores made anew at each, as SynFlow is meant (Tanaka et al. 2020, algorithm 1).
    """

    structure: str
    criterion: str
    allocation: str = "global"


@dataclass(frozen=True)
class Cut:
    """A pruned model, and the masks that hold its zeros (empty where units were cut out)."""

    model: ir.Model
    masks: Masks


class Dense:
    """A trained file that is pruned again and again: analysed once, its statistics gathered once."""

    def __init__(self, path: Path, images: npt.NDArray[Any], labels: npt.NDArray[Any], seed: int) -> None:
        """Take the file, calibration images with their labels, and the seed of all that is drawn."""
        self.path, self.seed = path, seed
        self.images, self.labels = images, labels

    @cached_property
    def structure(self) -> Structure:
        """The analysis of the file; its model is never changed."""
        return prepare(ir.load(self.path))

    @cached_property
    def evidence(self) -> Evidence:
        """What criteria may look at."""
        name = str(self.structure.model.graph.inputs[0].name)
        return Evidence(self.structure, {name: self.images}, self.labels, self.seed, batch=64)

    @cached_property
    def weights(self) -> list[Weight]:
        """The weights of all layers."""
        return prunable_weights(self.structure)

    @cached_property
    def groups(self) -> list[Group]:
        """The groups whose units can be removed exactly."""
        return [group for group in self.structure.groups if not group.inexact]

    @cached_property
    def sizes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of all parameters by name."""
        return {name: array.shape for name, array in parameters(self.structure.model).items()}

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(int(np.prod(shape)) for shape in self.sizes.values())

    def criterion(self, name: str) -> Criterion:
        """A criterion with the data it looks at."""
        return find_criterion(name).on(self.evidence)


def cut(dense: Dense, method: Method, ratio: int) -> Cut:
    """Prune to a compression ratio."""
    if method.structure == "channels":
        return shrink(dense, removed_units(dense, method, ratio))
    masks = {str(value.name): mask for value, mask in zeroed_weights(dense, method, ratio).items()}
    return Cut(apply_masks(dense.structure.model, masks), masks)


# --- zeros


def zeroed_weights(dense: Dense, method: Method, ratio: int) -> Mapping[ir.Value, Flags]:
    """Masks, True where a weight stays; all other parameters stay and count as left."""
    weights, criterion = dense.weights, dense.criterion(method.criterion)
    size = sum(w.size for w in weights)
    sparsity = (dense.total - round(dense.total / ratio)) / size
    if method.allocation == "iterative":
        return in_steps(dense, criterion, sparsity)
    if method.structure != "weights":
        pattern = parse_pattern(PATTERNS[ratio] if method.structure == "n:m" else method.structure)
        return pattern_masks(weights, criterion, pattern, sparsity, seed=dense.seed).masks
    if method.allocation == "global":
        return select_weights(weights, criterion, sparsity, seed=dense.seed)
    if method.allocation == "magnitude":
        chosen = select_weights(weights, find_criterion("magnitude"), sparsity)
        shares = {value: float(1 - mask.mean()) for value, mask in chosen.items()}
    else:
        shares = ALLOCATIONS[method.allocation](weights, sparsity, None) or {}
    return masks_of_shares(weights, criterion, shares, seed=dense.seed)


def in_steps(dense: Dense, criterion: Criterion, sparsity: float) -> Mapping[ir.Value, Flags]:
    """Masks of the weights, pruned a little at a time; what is zero stays zero."""
    pruned = onnxprune.prune(
        dense.path, sparsity=sparsity, criterion=criterion.name, iterations=STEPS, schedule="exponential", ends="prune",
        seed=dense.seed, verification=False,
    ).model  # fmt: skip
    left = {
        name: value.const_value.numpy() != 0 for name, value in pruned.graph.initializers.items() if value.const_value
    }
    return {w.value: left[w.name] for w in dense.weights}


# --- units


def removed_units(dense: Dense, method: Method, ratio: int) -> Flags:
    """Flags by atom id of the units that go."""
    if method.allocation == "magnitude":
        like = removed_units(dense, Method("channels", "magnitude", "cost"), ratio)
        return lowest_alike(dense, scores_of(dense, method.criterion), like)
    context = UnitContext(dense.structure, dense.weights, dense.groups, scores_of(dense, method.criterion))
    choose = UNIT_ALLOCATIONS[method.allocation]
    return nearest(dense, lambda share: choose(context, UnitBudget(share, "none")).removed, ratio)


def scores_of(dense: Dense, criterion: str) -> npt.NDArray[np.float64]:
    """The score of every unit, by atom id."""
    return unit_scores(dense.structure, dense.weights, dense.groups, dense.criterion(criterion), dense.seed)


def nearest(dense: Dense, select: Callable[[float], Flags], ratio: int) -> Flags:
    """The selection, of those met while bisecting the share, whose parameters left are nearest to all / ratio."""
    wanted, low, high = dense.total / ratio, 0.0, 1.0
    best, distance = select(high), np.inf
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        removed = select(middle)
        left = parameters_left(dense, removed)
        if abs(left - wanted) < distance:
            best, distance = removed, abs(left - wanted)
        low, high = (middle, high) if left > wanted else (low, middle)
    return best


def parameters_left(dense: Dense, removed: Flags) -> int:
    """The parameters of the model when these units are gone."""
    lost = {str(value.name): axes for value, axes in dense.structure.keep(removed).lost().items()}
    return sum(
        int(np.prod([lost.get(name, {}).get(i, np.ones(n, bool)).sum() for i, n in enumerate(shape)]))
        for name, shape in dense.sizes.items()
    )


def lowest_alike(dense: Dense, scores: npt.NDArray[np.float64], like: Flags) -> Flags:
    """As many units of each group as another selection takes: those of the lowest scores."""
    removed = np.zeros_like(like)
    for group in dense.groups:
        order = group.atoms[np.argsort(scores[group.atoms], kind="stable")]
        removed[order[: int(like[group.atoms].sum())]] = True
    return removed


def shrink(dense: Dense, removed: Flags) -> Cut:
    """Cut units out of a fresh copy of the model; atom ids are the same in every analysis of it."""
    structure = prepare(ir.load(dense.path))
    RemoveUnits(structure, removed)(structure.model)
    Tidy()(structure.model)
    return Cut(structure.model, {})
