"""Zeros in tiles: the outputs of a layer are divided into a few tiles, and each tile reads inputs of its own.

Guo et al. 2020, Accelerating Sparse DNN Models without Hardware-Support via Tile-Wise Sparsity (arXiv 2008.13006).
Nothing is coupled: every layer chooses by itself. Layers that read the same value share the inputs of their tiles, so
that one Gather serves them all. Which outputs make a tile is found in turns: the inputs that a tile reads are those
that matter most to its outputs, and every output goes to the tile whose inputs matter most to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.layers import MatrixAxes, matrix_axes, slot_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.tiles import Tile, indivisible, mask_of
from onnxprune.recipe.granularity import Tiles
from onnxprune.scoring.registry import Criterion
from onnxprune.selection.rounding import SMALLEST_BLOCK, RoundTo, conv_block
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import Weight

LEAST_OUTPUTS = 64
"""A tile has no fewer outputs: picking an input takes as long as some 17 multiply-adds, and twice that where the layout
of convolutions is left and entered again, so that an input has to serve many outputs."""

_TURNS = 8  # of choosing inputs for tiles and tiles for outputs
_POWER_STEPS = 8  # of finding the direction in which rows differ most

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def misfit(weight: Weight, round_to: RoundTo = "auto") -> str:
    """Return why a weight is not divided into tiles, empty where it is."""
    if weight.value in weight.structure.fills:
        return "its weights are stored as integers"
    why = indivisible(weight.value, weight.node, weight.shape)
    axes = matrix_axes(weight.value, weight.node, weight.shape)
    if why or axes is None:
        return why
    inputs = weight.shape[axes.reduction]
    return f"it reads {inputs} inputs, too few to choose from" if inputs < 2 * _step(weight, round_to) else ""


@dataclass(frozen=True, eq=False)
class _Layer:
    """A weight as a matrix.

    Attributes:
        weight: The weight.
        axes: Its axes.
        rows: Saliencies, summed over the kernel, shape [outputs, inputs].
        places: Weights of an output that read one input: the size of the kernel.
    """

    weight: Weight
    axes: MatrixAxes
    rows: Rows
    places: int


@dataclass(frozen=True, eq=False)
class _Family:
    """Layers that read the same value and have as many tiles, with the tile of each of their outputs.

    Attributes:
        layers: The layers.
        tiles: The tile of each output, of all layers one behind the other.
        step: Inputs stay and go by so many.
        order: The inputs of each tile, those that matter most first, shape [tiles, inputs].
        values: The mean saliency of the weights in each step of inputs, shape [tiles, steps].
        sizes: How many weights those are.
    """

    layers: Sequence[_Layer]
    tiles: Labels
    step: int
    order: Labels
    values: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.int64]


def tile_masks(
    weights: Sequence[Weight], criterion: Criterion, tiles: Tiles, sparsity: float, *,
    shares: Mapping[ir.Value, float] | None = None, seed: int = 0, round_to: RoundTo = "auto",
) -> Mapping[ir.Value, Bools]:  # fmt: skip
    """Choose what stays.

    Args:
        weights: The weights; `misfit` has nothing against any.
        criterion: How saliency is measured.
        tiles: How many tiles a layer has at most.
        sparsity: The share of all weights that should be zero; never more.
        shares: The share of each weight; without them the inputs of all tiles are ranked together.
        seed: For criteria that draw at random.
        round_to: The inputs of a tile are a multiple of this; "auto" is that of convolutions, or 4.

    Returns:
        For each weight a mask of its shape, True where the weight stays.
    """
    families = []
    for members in families_of(weights, tiles):
        layers = [_layer(weights[i], criterion, np.random.default_rng([seed, i])) for i in members]
        sizes = [layer.weight.size for layer in layers]
        share = sparsity if shares is None else np.average([shares[y.weight.value] for y in layers], weights=sizes)
        families.append(_family(layers, _tile_count(layers[0].weight, tiles.count), float(share), round_to))
    if shares is None:
        return _masks(families, sparsity * sum(weight.size for weight in weights))
    separate = [_masks([f], sum(shares[y.weight.value] * y.weight.size for y in f.layers)) for f in families]
    return {value: mask for masks in separate for value, mask in masks.items()}


def families_of(weights: Sequence[Weight], tiles: Tiles) -> list[list[int]]:
    """Return the numbers of weights whose layers read the same value along the same axis, and have as many tiles."""
    families: dict[tuple[object, ...], list[int]] = {}
    for number, weight in enumerate(weights):
        slot, axes = slot_of(weight.value, weight.node, weight.shape), matrix_axes(weight.value, weight.node)
        assert slot is not None and axes is not None
        read = weight.node.inputs[slot.data]
        key = (read, slot.data_axis, weight.shape[axes.reduction], _tile_count(weight, tiles.count))
        families.setdefault(key, []).append(number)
    return list(families.values())


def _tile_count(weight: Weight, most: int) -> int:
    axes = matrix_axes(weight.value, weight.node)
    assert axes is not None
    return min(most, max(1, weight.shape[axes.output] // LEAST_OUTPUTS))


def _step(weight: Weight, round_to: RoundTo) -> int:
    if round_to == "none":
        return 1
    if round_to != "auto":
        return int(round_to)
    return conv_block() if operator_of(weight.node).kind == "conv" else SMALLEST_BLOCK


def _block(weight: Weight) -> int:
    """By how many outputs a layer is divided."""
    return conv_block() if operator_of(weight.node).kind == "conv" else 1


def _layer(weight: Weight, criterion: Criterion, rng: np.random.Generator) -> _Layer:
    axes = matrix_axes(weight.value, weight.node)
    assert axes is not None
    moved = np.moveaxis(criterion.saliency(weight, rng), (axes.output, axes.reduction), (0, 1))
    flat = moved.reshape(*moved.shape[:2], -1)
    return _Layer(weight, axes, np.nan_to_num(flat.sum(axis=2, dtype=np.float32)), flat.shape[2])


def _family(layers: Sequence[_Layer], count: int, share: float, round_to: RoundTo) -> _Family:
    """Divide the outputs of layers into tiles, and rank the inputs of each tile."""
    step = max(_step(layer.weight, round_to) for layer in layers)
    tiles = _divided(layers, count, share)
    rows = np.concatenate([layer.rows for layer in layers])
    places = np.repeat([layer.places for layer in layers], [len(layer.rows) for layer in layers])
    sums, weights = np.zeros((count, rows.shape[1])), np.zeros(count, np.int64)
    for tile in range(count):
        sums[tile], weights[tile] = rows[tiles == tile].sum(axis=0, dtype=np.float64), places[tiles == tile].sum()
    order = np.argsort(-sums, axis=1, kind="stable")
    starts = np.arange(0, rows.shape[1], step)
    lengths = np.diff(np.append(starts, rows.shape[1]))
    sizes = weights[:, None] * lengths
    values = np.add.reduceat(np.take_along_axis(sums, order, axis=1), starts, axis=1) / np.maximum(sizes, 1)
    return _Family(layers, tiles, step, order, values, sizes)


def _masks(families: Sequence[_Family], budget: float) -> dict[ir.Value, Bools]:
    """Let the inputs of the least mean saliency go, of all tiles together, while the budget of weights lasts.

    Those that matter most to a tile stay.
    """
    values = np.concatenate([f.values[:, 1:].reshape(-1) for f in families])
    sizes = np.concatenate([f.sizes[:, 1:].reshape(-1) for f in families])
    order = np.lexsort((-np.arange(len(values)), values))  # of equal ones the last first, so that a tile loses its ends
    stays = np.ones(len(values), bool)
    stays[order[np.cumsum(sizes[order]) <= budget + 1e-9]] = False
    masks, start = {}, 0
    for family in families:
        count, steps = family.values.shape
        kept = stays[start : start + count * (steps - 1)].reshape(count, steps - 1)
        start += count * (steps - 1)
        for layer, tiles in _tiles(family, family.step * (1 + kept.sum(axis=1))):
            masks[layer.weight.value] = mask_of(tiles, layer.weight.shape, layer.axes)
    return masks


def _tiles(family: _Family, counts: Labels) -> list[tuple[_Layer, list[Tile]]]:
    """The tiles of each layer of a family, from how many inputs each tile keeps."""
    inputs = [np.sort(ranked[:kept]) for ranked, kept in zip(family.order, counts, strict=True)]
    out, start = [], 0
    for layer in family.layers:
        of_layer = family.tiles[start : start + len(layer.rows)]
        start += len(layer.rows)
        out.append((layer, [Tile(np.flatnonzero(of_layer == t), reads) for t, reads in enumerate(inputs)]))
    return out


# -- which outputs make a tile --------------------------------------------------------------------------------------


def _divided(layers: Sequence[_Layer], count: int, share: float) -> Labels:
    """The tile of each output: every layer has as many outputs in each, and what they read matters to them most."""
    rows = np.concatenate([layer.rows for layer in layers])
    if count == 1:
        return np.zeros(len(rows), np.int64)
    kept = max(1, round((1 - share) * rows.shape[1]))
    ends = np.cumsum([0, *(len(layer.rows) for layer in layers)])
    best, tiles, most = _halved(rows, count), _halved(rows, count), -1.0
    for _ in range(_TURNS):
        sums = np.stack([rows[tiles == tile].sum(axis=0) for tile in range(count)])
        reads = np.zeros(sums.shape, np.float32)
        np.put_along_axis(reads, np.argsort(-sums, axis=1, kind="stable")[:, :kept], 1.0, axis=1)
        gain = rows @ reads.T
        parts = zip(layers, ends[:-1], ends[1:], strict=True)
        tiles = np.concatenate([_balanced(gain[a:b], _block(layer.weight)) for layer, a, b in parts])
        total = float(gain[np.arange(len(gain)), tiles].sum(dtype=np.float64))
        if total <= most * (1 + 1e-6):
            break
        best, most = tiles, total
    return best


def _halved(rows: Rows, count: int) -> Labels:
    """Divide rows into parts of like size: again and again across the direction in which they differ most."""
    tiles = np.zeros(len(rows), np.int64)
    waiting = [(np.arange(len(rows)), 0, count)]
    while waiting:
        members, first, parts = waiting.pop()
        tiles[members] = first
        if parts > 1:
            left = parts // 2
            order = members[np.argsort(_along(rows[members]), kind="stable")]
            cut = round(len(order) * left / parts)
            waiting += [(order[:cut], first, left), (order[cut:], first + left, parts - left)]
    return tiles


def _along(rows: Rows) -> npt.NDArray[np.float32]:
    """Where each row lies along the direction in which rows of length 1 differ most (power iteration)."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    shapes = rows / np.maximum(lengths, np.float32(1e-30))
    shapes = shapes - shapes.mean(axis=0)
    direction = shapes[int(np.argmax((shapes**2).sum(axis=1)))] if len(shapes) else np.zeros(rows.shape[1], np.float32)
    for _ in range(_POWER_STEPS):
        direction = shapes.T @ (shapes @ direction)
        direction = direction / max(float(np.linalg.norm(direction)), 1e-30)
    along: npt.NDArray[np.float32] = shapes @ direction
    return along


def _balanced(gain: Rows, block: int) -> Labels:
    """Give each output the tile of the largest gain, as many outputs to each tile.

    Where a tile is full, those go elsewhere that lose least by it.
    """
    outputs, count = gain.shape
    room = _rooms(outputs, count, block)
    tiles, left, open_tiles = np.full(outputs, -1), np.arange(outputs), np.arange(count)
    while left.size:
        gains = gain[np.ix_(left, open_tiles)]
        wanted = open_tiles[gains.argmax(axis=1)]
        ranked = np.sort(gains, axis=1)
        loss = ranked[:, -1] - (ranked[:, -2] if len(open_tiles) > 1 else 0)
        full = [t for t in open_tiles if (wanted == t).sum() >= room[t]]
        for tile in full or open_tiles:
            asking = np.flatnonzero(wanted == tile)
            first = asking[np.argsort(-loss[asking], kind="stable")][: room[tile]]
            tiles[left[first]] = tile
        left = left[tiles[left] < 0]
        open_tiles = np.array([t for t in open_tiles if t not in full])
    return tiles


def _rooms(outputs: int, count: int, block: int) -> list[int]:
    """How many outputs each tile takes: as even as can be, in whole blocks where these divide them."""
    block = block if outputs % block == 0 and outputs // block >= count else 1
    each, over = divmod(outputs // block, count)
    return [block * (each + (tile < over)) for tile in range(count)]
