"""Tiles: what stays is looked at by loops that know nothing of how the masks were made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from small_models import graph, random

from onnxprune.graph.layers import matrix_axes
from onnxprune.graph.tiles import tiles_of
from onnxprune.passes import Normalise
from onnxprune.recipe.granularity import Tiles
from onnxprune.scoring import Weight, find_criterion, prunable_weights
from onnxprune.selection.tiles import misfit, tile_masks
from onnxprune.structure.analysis import analyse

Array = npt.NDArray[np.float32]


def weights_of(model: ir.Model) -> list[Weight]:
    Normalise()(model)
    return prunable_weights(analyse(model))


def product(numbers: Array) -> list[Weight]:
    """One MatMul with these weights, shape [inputs, outputs]."""
    k, n = numbers.shape
    return weights_of(graph(f"a (float[N,{k}] x) => (float[N,{n}] y) {{ y = MatMul(x, w) }}", {"w": numbers}))


def masks(chosen: list[Weight], tiles: int, sparsity: float, **settings: object) -> dict[str, npt.NDArray[np.bool_]]:
    found = tile_masks(chosen, find_criterion("magnitude"), Tiles(tiles), sparsity, **settings)  # type: ignore[arg-type]
    return {str(value.name): mask for value, mask in found.items()}


def rows_of(mask: npt.NDArray[np.bool_], weight: Weight) -> npt.NDArray[np.bool_]:
    """Outputs by inputs; all places of a kernel agree."""
    axes = matrix_axes(weight.value, weight.node)
    assert axes is not None
    moved = np.moveaxis(mask, (axes.output, axes.reduction), (0, 1))
    flat = moved.reshape(*moved.shape[:2], -1)
    assert (flat == flat[:, :, :1]).all()
    return np.asarray(flat[:, :, 0])


@pytest.mark.parametrize("tiles", [1, 2, 3, 4])
@pytest.mark.parametrize("sparsity", [0.3, 0.75])
def test_the_outputs_read_in_as_many_ways_as_there_are_tiles_and_the_share_is_kept(tiles: int, sparsity: float) -> None:
    chosen = product(random(64, 288))
    mask = rows_of(masks(chosen, tiles, sparsity)["w"], chosen[0])
    ways, counts = np.unique(mask, axis=0, return_counts=True)
    assert len(ways) == tiles and counts.max() - counts.min() <= 1
    assert all(way.sum() % 4 == 0 and way.any() for way in ways)
    gone = 1 - mask.mean()
    assert sparsity - 4 * 288 / mask.size <= gone <= sparsity


def test_outputs_that_read_the_same_inputs_are_found_whatever_their_order() -> None:
    rng = np.random.default_rng(1)
    reads = np.zeros((4, 64), bool)
    for tile in range(4):
        reads[tile, rng.permutation(64)[:16]] = True
    tile_of = rng.permutation(np.repeat(np.arange(4), 64))
    strong = np.where(reads[tile_of], 1.0, 0.01) * (1 + 0.1 * random(256, 64))
    mask = rows_of(
        masks(product(np.ascontiguousarray(strong.T, np.float32)), 4, 0.75)["w"], product(random(64, 256))[0]
    )
    assert (mask == reads[tile_of]).all()


def test_more_is_kept_than_by_tiles_of_neighbours() -> None:
    """The order of the outputs is chosen: what is left of real rows is more than that of rows as they come."""
    rng = np.random.default_rng(2)
    kinds = np.abs(rng.standard_normal((6, 64)))
    numbers = np.ascontiguousarray(
        (kinds[rng.integers(0, 6, 256)] * np.abs(rng.standard_normal((256, 64)))).T, np.float32
    )
    kept = float(numbers[masks(product(numbers), 4, 0.75)["w"]].sum())
    neighbours = 0.0
    for tile in np.split(numbers, 4, axis=1):
        neighbours += float(np.sort(tile.sum(axis=1))[-16:].sum())
    assert kept > 1.05 * neighbours


def test_layers_that_read_the_same_value_read_the_same_inputs_of_it() -> None:
    text = "a (float[N,64] x) => (float[N,192] y, float[N,128] z, float[N,128] u) { y = MatMul(x, q) z = MatMul(x, k)"
    chosen = weights_of(
        graph(
            f"{text} r = Relu(x) u = MatMul(r, o) }}",
            {"q": random(64, 192), "k": random(64, 128), "o": random(64, 128)},
        )
    )
    found = masks(chosen, 2, 0.5)
    inputs = {w.name: {tuple(row) for row in rows_of(found[w.name], w)} for w in chosen}
    assert inputs["q"] == inputs["k"] != inputs["o"]


def test_inputs_of_convolutions_go_by_sixteen_and_by_whole_kernels() -> None:
    model = graph(
        "a (float[N,64,8,8] x) => (float[N,256,8,8] y) { y = Conv<pads = [1,1,1,1]>(x, w) }",
        {"w": random(256, 64, 3, 3)},
    )
    chosen = weights_of(model)
    ways = np.unique(rows_of(masks(chosen, 4, 0.6)["w"], chosen[0]), axis=0)
    assert len(ways) == 4 and all(way.sum() % 16 == 0 for way in ways)
    exact = np.unique(rows_of(masks(chosen, 4, 0.6, round_to="none")["w"], chosen[0]), axis=0)
    assert any(way.sum() % 16 for way in exact)


def test_a_layer_with_few_outputs_has_fewer_tiles() -> None:
    chosen = product(random(64, 100))
    assert len(np.unique(rows_of(masks(chosen, 4, 0.5)["w"], chosen[0]), axis=0)) == 1


def test_shares_are_kept_by_each_layer() -> None:
    text = "a (float[N,64] x) => (float[N,32] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    chosen = weights_of(graph(text, {"w": random(64, 64), "v": random(64, 32)}))
    found = masks(chosen, 2, 0.5, shares={chosen[0].value: 0.25, chosen[1].value: 0.75})
    assert 1 - found["w"].mean() == pytest.approx(0.25, abs=0.03) and 1 - found["v"].mean() == pytest.approx(
        0.75, abs=0.03
    )


def test_what_cannot_be_divided_says_why() -> None:
    text = """a (float[N,32,8,8] x, float[5,N,8] s) => (float[N,64,16,16] t, float[5,1,N,8] z) {
      a = Conv<group = 2>(x, grouped) b = Conv(a, few) t = ConvTranspose<strides = [2,2]>(b, transposed)
      z = RNN<hidden_size = 8>(s, w, r) }"""
    shapes = {
        "grouped": (16, 16, 1, 1),
        "few": (32, 16, 1, 1),
        "transposed": (32, 64, 2, 2),
        "w": (1, 8, 8),
        "r": (1, 8, 8),
    }
    why = {w.name: misfit(w) for w in weights_of(graph(text, {n: random(*s) for n, s in shapes.items()}))}
    assert "groups" in why["grouped"] and "16 inputs, too few" in why["few"]
    assert "ConvTranspose" in why["transposed"] and "RNN" in why["w"]


def test_a_mask_and_its_tiles_are_the_same_thing() -> None:
    chosen = product(random(64, 256))
    mask = masks(chosen, 4, 0.5)["w"]
    axes = matrix_axes(chosen[0].value, chosen[0].node)
    assert axes is not None
    tiles = tiles_of(mask, axes)
    assert sorted(np.concatenate([t.outputs for t in tiles]).tolist()) == list(range(256))
    again = np.zeros_like(mask)
    for tile in tiles:
        again[np.ix_(tile.inputs, tile.outputs)] = True
    assert (again == mask).all()
