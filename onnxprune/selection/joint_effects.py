"""What a model's outputs change by when one residual block goes, or one layer is written in tiles and made up for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.graph.layers import matrix_axes, slot_of
from onnxprune.graph.tiles import tiles_of
from onnxprune.passes.tile_ways import Costs, cost, dense_cost, ways_of
from onnxprune.recipe.granularity import Tiles
from onnxprune.recipe.recipe import Recipe
from onnxprune.runtime.session import make_session, run
from onnxprune.runtime.stream.effects import Effects, Reference
from onnxprune.runtime.stream.gather import Batches
from onnxprune.scoring.depth import without_block
from onnxprune.scoring.evidence import Evidence
from onnxprune.scoring.registry import Criterion
from onnxprune.selection.joint import TileOffer
from onnxprune.selection.measured import refit
from onnxprune.selection.tiles import families_of, tile_masks
from onnxprune.structure.blocks import ResidualBlock
from onnxprune.structure.costs import CostName
from onnxprune.structure.figures import figures_in_use
from onnxprune.structure.masking import constant_content
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import Weight

Array = npt.NDArray[Any]

SHARES = (0.5, 0.7, 0.85)
"""Shares of a layer's weights that become zero where its effect is measured; fewer save no time."""

_BETWEEN = 3  # shares that are on offer between two that are measured


def block_effects(structure: Structure, blocks: Sequence[ResidualBlock], samples: Batches, power: float) -> list[float]:
    """Return what the outputs change by without each block, to the power at which effects add up."""
    session = make_session(structure.model)
    dense = Reference.of([run(session, feeds) for feeds in samples.feeds], samples.feeds[0])
    effects = []
    for block in blocks:
        without = make_session(without_block(structure.model, block))
        effects.append(dense.effect([run(without, feeds) for feeds in samples.feeds]) ** power)
    return [effect if np.isfinite(effect) else np.inf for effect in effects]


@dataclass(frozen=True, eq=False)
class TileMeasure:
    """How tiles are measured.

    Attributes:
        structure: The analysis of the model.
        criterion: What of a layer matters.
        evidence: Gram matrices of the model's layers.
        effects: The model on some samples.
        power: That at which effects add up.
        cost: What is to be saved.
        recipe: How inputs are rounded, and the seed.
    """

    structure: Structure
    criterion: Criterion
    evidence: Evidence
    effects: Effects
    power: float
    cost: CostName
    recipe: Recipe

    def offers(self, weights: Sequence[Weight]) -> list[TileOffer]:
        """Return all layers that save something in tiles."""
        made = [self._offer([weights[i] for i in members]) for members in families_of(weights, Tiles())]
        return [offer for offer in made if offer is not None]

    def _offer(self, weights: Sequence[Weight]) -> TileOffer | None:
        shares, effects, factors = [0.0], [0.0], [1.0]
        for share in SHARES:
            masks = tile_masks(
                weights, self.criterion, Tiles(), share, shares={w.value: share for w in weights},
                seed=self.recipe.seed, round_to=self.recipe.round_to,
            )  # fmt: skip
            gone = 1 - sum(int(m.sum()) for m in masks.values()) / sum(m.size for m in masks.values())
            factor = self._factor(weights, masks) if self.cost == "latency" else 1 - gone
            if gone <= shares[-1] or factor >= min(factors):
                continue
            changed: dict[str, Array] = {}
            for weight in weights:
                changed |= self._made_up(weight, masks[weight.value])
            effect = self.effects.of(changed) ** self.power
            if not np.isfinite(effect):
                break
            shares.append(gone)
            effects.append(max(effect, effects[-1]))
            factors.append(factor)
        if len(shares) == 1:
            return None
        fine = np.array([0.0, *_fine(shares[1:])])
        return TileOffer(weights, fine, np.interp(fine, shares, effects), np.interp(fine, shares, factors))

    def _factor(self, weights: Sequence[Weight], masks: Mapping[Any, Bools]) -> float:
        """What share of the layers' time is left in tiles."""
        shapes, facts = self.structure.known_shapes, self.structure.facts
        costs, dense, tiled = Costs.of(figures_in_use()), 0.0, 0.0
        for weight in weights:
            axes, slot = matrix_axes(weight.value, weight.node), slot_of(weight.value, weight.node)
            assert axes is not None and slot is not None
            ways = ways_of(weight.node, slot, weight.value, tiles_of(masks[weight.value], axes), shapes, facts)
            if isinstance(ways, str):
                return 1.0
            before = dense_cost(ways[0], shapes, costs)
            dense += before
            tiled += min(before, *(cost(way, shapes, costs) for way in ways))
        return tiled / dense

    def _made_up(self, weight: Weight, mask: Bools) -> dict[str, Array]:
        """The layer's constants with zeros, each tile fitted to its dense outputs where its inputs can be measured."""
        layer = self.evidence.layers.get(weight.name)
        array = constant_content(weight.value)
        if layer is None or layer.groups != 1:
            return {weight.name: np.where(mask, array, 0).astype(array.dtype)}
        axes = matrix_axes(weight.value, weight.node)
        assert axes is not None
        matrix, moments = layer.matrix(), self.evidence.moments(layer.name)
        fitted, change = np.zeros_like(matrix), np.zeros(matrix.shape[:2])
        for tile in tiles_of(mask, axes):
            columns = (tile.inputs[:, None] * layer.places + np.arange(layer.places)).reshape(-1)
            part = matrix[:, tile.outputs]
            fitted[:, tile.outputs], change[:, tile.outputs] = refit(
                part, moments, columns, with_bias=layer.shift is not None
            )
        changed: dict[str, Array] = {layer.name: layer.from_matrix(fitted / layer.scale).astype(array.dtype)}
        if layer.shift is not None:
            value, sign = layer.shift
            old: Array = constant_content(value)
            changed[str(value.name)] = (old + sign * change.reshape(old.shape)).astype(old.dtype)
        return changed


def _fine(shares: Sequence[float]) -> list[float]:
    """Shares with some more between them."""
    pieces = [np.linspace(a, b, _BETWEEN + 1, endpoint=False) for a, b in zip(shares, shares[1:], strict=False)]
    return [*(float(x) for piece in pieces for x in piece), shares[-1]]
