"""Layers in tiles compute what the masked layers compute, and come back bit for bit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from small_models import array, graph, random, set_array

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.graph.layers import MatrixAxes
from onnxprune.graph.tiles import Tile, mask_of
from onnxprune.passes import JoinTiles, TileLayers
from onnxprune.passes.join_tiles import in_tiles
from onnxprune.passes.tile_layers import PREFIX
from onnxprune.passes.tile_ways import Costs

Masks = dict[str, npt.NDArray[np.bool_]]
FREE = Costs(moved=0, picked=0, node=0, read=0, block=1)
TURNED = Costs(moved=1e-3, picked=1, node=0, read=0, block=1)


def masked(
    model: ir.Model, name: str, output: int, reduction: int, *, dense_tile: bool = False
) -> npt.NDArray[np.bool_]:
    """Zero a weight in three tiles of outputs here and there, each of half of the inputs; one of all, if asked for."""
    rng, numbers = np.random.default_rng(len(name)), array(model, name)
    outputs, inputs = numbers.shape[output], numbers.shape[reduction]
    of, half = rng.permutation(outputs) % 3, inputs // 2
    reads = [np.sort(rng.permutation(inputs)[: inputs if dense_tile and not tile else half]) for tile in range(3)]
    tiles = [Tile(np.flatnonzero(of == tile), read) for tile, read in enumerate(reads)]
    mask = mask_of(tiles, numbers.shape, MatrixAxes(reduction, output))
    set_array(model, name, np.where(mask, numbers, 0).astype(numbers.dtype))
    return mask


def tile(model: ir.Model, masks: Masks, costs: Costs = FREE) -> TileLayers:
    rewrite = TileLayers(
        masks, runtime.concrete_shapes(model, runtime.one_sample(model, seed=0)), runtime.known_facts(model), costs
    )
    rewrite(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return rewrite


def content(model: ir.Model) -> tuple[Any, ...]:
    """Nodes in order, and constants by name."""
    proto = ir.to_proto(model)
    constants = sorted((c.name, c.SerializeToString()) for c in proto.graph.initializer)
    nodes = [
        (n.name, n.op_type, [*n.input], [*n.output], sorted(a.SerializeToString() for a in n.attribute))
        for n in proto.graph.node
    ]
    return constants, nodes, [v.name for v in proto.graph.output]


MATMUL = "a (float[N,S,16] x) => (float[N,S,12] y) { y = MatMul(x, w) }"
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, int]]] = {
    "rows": (MATMUL, {"w": (16, 12)}, (1, 0)),
    "one row": ("a (float[1,1,16] x) => (float[1,1,12] y) { y = MatMul(x, w) }", {"w": (16, 12)}, (1, 0)),
    "weights on the left": ("a (float[N,16,7] x) => (float[N,12,7] y) { y = MatMul(w, x) }", {"w": (12, 16)}, (0, 1)),
    "gemm": ("a (float[N,16] x) => (float[N,12] y) { y = Gemm(x, w, b) }", {"w": (16, 12), "b": (12,)}, (1, 0)),
    "gemm, transposed": (
        "a (float[N,16] x) => (float[N,12] y) { y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b) }",
        {"w": (12, 16), "b": (1, 12)}, (0, 1),
    ),
    "gemm, a bias of rows": (
        "a (float[5,16] x) => (float[5,12] y) { y = Gemm(x, w, b) }", {"w": (16, 12), "b": (5, 12)}, (1, 0)
    ),
    "gemm, a bias for all": (
        "a (float[5,16] x) => (float[5,12] y) { y = Gemm(x, w, b) }", {"w": (16, 12), "b": (5, 1)}, (1, 0)
    ),
    "gemm of one row": (
        "a (float[1,16] x) => (float[1,12] y) { y = Gemm<transB = 1>(x, w, b) }", {"w": (12, 16), "b": (12,)}, (0, 1)
    ),
    "gemm, weights on the left": (
        "a (float[16,5] x) => (float[12,5] y) { y = Gemm(w, x, b) }", {"w": (12, 16), "b": (12, 1)}, (0, 1)
    ),
    "convolution": (
        "a (float[N,16,6,6] x) => (float[N,12,6,6] y) { y = Conv<pads = [1,1,1,1]>(x, w, b) }",
        {"w": (12, 16, 3, 3), "b": (12,)}, (0, 1),
    ),
    "convolution in one dimension": (
        'a (float[N,16,6] x) => (float[N,12,3] y) { y = Conv<strides = [2], auto_pad = "SAME_UPPER">(x, w) }',
        {"w": (12, 16, 3)}, (0, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("costs", [FREE, TURNED], ids=["straight", "turned"])
@pytest.mark.parametrize("dense_tile", [False, True], ids=["", "one reads all"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_in_tiles_computes_the_same_and_comes_back_bit_for_bit(
    case: str, dense_tile: bool, costs: Costs
) -> None:
    text, shapes, (output, reduction) = CASES[case]
    model = graph(text, {name: random(*shape) for name, shape in shapes.items()})
    model.graph[0].name = "layer"
    mask = masked(model, "w", output, reduction, dense_tile=dense_tile)
    before, feeds = model.clone(), runtime.one_sample(model, seed=0)
    rewrite = tile(model, {"w": mask}, costs)
    assert set(rewrite.tiled) == {"w"} and not rewrite.plain and in_tiles(model)
    assert "w" not in model.graph.initializers
    assert sum(array(model, n).size for n in model.graph.initializers if "/w" in n) == mask.sum()
    a, b = (runtime.run(runtime.make_session(m), feeds)["y"] for m in (before, model))
    np.testing.assert_allclose(a, b, atol=1e-5)
    JoinTiles()(model)
    assert content(model) == content(before)
    assert not in_tiles(model)


def test_rows_are_turned_where_picking_single_numbers_takes_long_and_a_single_row_is_not() -> None:
    kinds = {}
    for case in ("rows", "one row"):
        text, shapes, axes = CASES[case]
        model = graph(text, {name: random(*shape) for name, shape in shapes.items()})
        tile(model, {"w": masked(model, "w", *axes)}, TURNED)
        kinds[case] = Counter(node.op_type for node in model.graph)
    assert kinds["rows"] == {"Transpose": 2, "Gather": 4, "MatMul": 3, "Concat": 1}
    assert kinds["one row"] == {"GatherElements": 4, "MatMul": 3, "Concat": 1}


def test_layers_that_read_the_same_inputs_share_the_gather() -> None:
    text = "a (float[N,S,16] x) => (float[N,S,12] y, float[N,S,12] z) { y = MatMul(x, q) z = MatMul(x, k) }"
    model = graph(text, {"q": random(16, 12), "k": random(16, 12, seed=1)})
    mask = masked(model, "q", 1, 0)
    set_array(model, "k", np.where(mask, array(model, "k"), 0).astype(np.float32))
    before, feeds = model.clone(), runtime.one_sample(model, seed=0)
    tile(model, {"q": mask, "k": mask}, TURNED)
    ops = Counter(node.op_type for node in model.graph)
    assert ops["Gather"] == 3 + 2 and ops["Transpose"] == 1 + 2 and ops["MatMul"] == 6
    for name, expected in runtime.run(runtime.make_session(before), feeds).items():
        np.testing.assert_allclose(runtime.run(runtime.make_session(model), feeds)[name], expected, atol=1e-5)
    JoinTiles()(model)
    assert content(model) == content(before)


def test_a_layer_whose_tiles_take_longer_stays_and_is_named() -> None:
    model = graph(MATMUL, {"w": random(16, 12)})
    mask = masked(model, "w", 1, 0)
    before = content(model)
    rewrite = tile(model, {"w": mask}, Costs())
    assert not rewrite.tiled and "longer" in rewrite.plain["w"]
    assert content(model) == before


@pytest.mark.parametrize(
    ("text", "weights", "axes", "why"),
    [
        ("a (float[16,5] x) => (float[5,12] y) { y = Gemm<transA = 1>(x, w) }", {"w": (16, 12)}, (1, 0), "transposed"),
        ("a (float[N,16] x, float[12] c) => (float[N,12] y) { y = Gemm(x, w, c) }", {"w": (16, 12)}, (1, 0), "bias"),
        ("a (float[N,16] x) => (float[N,12] y) { t = Transpose(w) y = MatMul(x, t) }", {"w": (12, 16)}, (0, 1),
         "read by Transpose"),
        ("a (float[N,16] x) => (float[N,12] y, float[16,12] z) { y = MatMul(x, w) z = Neg(w) }", {"w": (16, 12)},
         (1, 0), "one node"),
    ],
)  # fmt: skip
def test_a_layer_that_cannot_be_written_so_stays_and_says_why(
    text: str, weights: dict[str, tuple[int, ...]], axes: tuple[int, int], why: str
) -> None:
    model = graph(text, {name: random(*shape) for name, shape in weights.items()})
    mask = masked(model, "w", *axes)
    before = content(model)
    rewrite = tile(model, {"w": mask})
    assert not rewrite.tiled and why in rewrite.plain["w"]
    assert content(model) == before


GELU = "h = MatMul(x, w) b = Add(h, bias) e = Erf(b) o = Add(e, one) g = Mul(b, o) y = MatMul(g, v)"
DEPTHWISE = "h = Conv(x, w, b) r = Relu(h) d = Conv<group = 24, pads = [1,1,1,1]>(r, dw, db) s = Relu(d) y = Conv(s, v)"
PRODUCTS = {"w": (16, 24), "bias": (24,), "one": (1,), "v": (24, 12)}
CONVOLUTIONS = {"w": (24, 16, 1, 1), "b": (24,), "dw": (24, 1, 3, 3), "db": (24,), "v": (12, 24, 1, 1)}
FOLLOWED: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, tuple[int, int]], int]] = {
    "a branch of both": (
        f"a (float[N,S,16] x) => (float[N,S,12] y) {{ {GELU} }}", PRODUCTS, {"w": (1, 0), "v": (1, 0)}, 3 + 3 + 1
    ),
    "a dense layer behind": (
        f"a (float[N,S,16] x) => (float[N,S,12] y) {{ {GELU} }}", PRODUCTS, {"w": (1, 0)}, 3
    ),
    "convolutions by depth": (
        f"a (float[N,16,6,6] x) => (float[N,12,6,6] y) {{ {DEPTHWISE} }}", CONVOLUTIONS, {"w": (0, 1), "v": (0, 1)},
        3 + 3 + 1,
    ),
    "a normalisation, a pool and a turn": (
        "a (float[N,16,6,6] x) => (float[N,5,3,3] y) { h = Conv(x, w, b) n = BatchNormalization(h, s, o, m, q) "
        "p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(n) t = Transpose<perm = [0,2,3,1]>(p) k = MatMul(t, v) "
        "y = Transpose<perm = [0,3,1,2]>(k) }",
        {"w": (24, 16, 1, 1), "b": (24,), "s": (24,), "o": (24,), "m": (24,), "q": (24,), "v": (24, 5)}, {"w": (0, 1)},
        3,
    ),
    "a normalisation over the outputs": (
        "a (float[N,S,16] x) => (float[N,S,12] y) { h = MatMul(x, w) n = LayerNormalization(h, s) y = MatMul(n, v) }",
        {"w": (16, 24), "s": (24,), "v": (24, 12)}, {"w": (1, 0)}, 3 + 1,
    ),
    "a sum with something else": (
        "a (float[N,16,6,6] x) => (float[N,16,6,6] y) { h = Conv(x, w, b) r = Relu(h) y = Add(r, x) }",
        {"w": (16, 16, 1, 1), "b": (16,)}, {"w": (0, 1)}, 3 + 1,
    ),
    "a normalisation of groups": (
        "a (float[N,16,6,6] x) => (float[N,12,6,6] y) { h = Conv(x, w, b) n = LRN<size = 3>(h) y = Conv(n, v) }",
        {"w": (24, 16, 1, 1), "b": (24,), "v": (12, 24, 1, 1)}, {"w": (0, 1)}, 3 + 1,
    ),
    "an output of the model in front of another layer": (
        "a (float[N,16] x) => (float[N,24] h, float[N,12] y) { h = Gemm(x, w) k = Gemm(h, u) y = Gemm(k, v) }",
        {"w": (16, 24), "u": (24, 24), "v": (24, 12)}, {"w": (1, 0), "u": (1, 0)}, 3 + 1 + 3,
    ),
    "an output of the model": (
        "a (float[N,16] x) => (float[N,24] h, float[N,12] y) { h = Gemm(x, w) y = Gemm(h, v) }",
        {"w": (16, 24), "v": (24, 12)}, {"w": (1, 0)}, 3 + 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("costs", [FREE, TURNED], ids=["straight", "turned"])
@pytest.mark.parametrize("case", FOLLOWED)
def test_the_order_of_outputs_is_absorbed_where_every_reader_can_follow(case: str, costs: Costs) -> None:
    """Gathers: one for each tile, and one for each layer whose outputs have to be put back in order."""
    text, shapes, axes, gathers = FOLLOWED[case]
    model = graph(text, {name: random(*shape) for name, shape in shapes.items()})
    for number, node in enumerate(model.graph):
        node.name = f"node {number}"
    masks = {name: masked(model, name, *of) for name, of in axes.items()}
    if "q" in shapes:  # a variance
        set_array(model, "q", np.abs(array(model, "q")) + np.float32(0.5))
    before, feeds = model.clone(), runtime.one_sample(model, seed=0)
    rewrite = tile(model, masks, costs)
    assert set(rewrite.tiled) == set(axes)
    assert sum(node.op_type == "Gather" for node in model.graph) == gathers
    expected, actual = (runtime.run(runtime.make_session(m), feeds) for m in (before, model))
    for name, array_ in expected.items():
        np.testing.assert_allclose(actual[name], array_, atol=1e-4 * np.abs(array_).max())
    model = ir.from_proto(ir.to_proto(model))
    JoinTiles()(model)
    assert content(model) == content(before)


def test_a_single_tile_needs_neither_a_concat_nor_an_order() -> None:
    text = "a (float[N,16,6,6] x) => (float[N,12,6,6] y) { h = Conv(x, w, b) y = Relu(h) }"
    model = graph(text, {"w": random(12, 16, 1, 1), "b": random(12)})
    model.graph[0].name, model.graph[1].name = "first", "second"
    mask = mask_of([Tile(np.arange(12), np.arange(8))], (12, 16, 1, 1), MatrixAxes(1, 0))
    set_array(model, "w", np.where(mask, array(model, "w"), 0).astype(np.float32))
    before = content(model)
    tile(model, {"w": mask})
    assert [node.op_type for node in model.graph] == ["Gather", "Conv", "Relu"]
    JoinTiles()(model)
    assert content(model) == before


@pytest.mark.parametrize("other", ["Add(z, bias)", "MatMul(z, v)"])
def test_a_constant_that_others_read_too_keeps_its_order_for_them(other: str) -> None:
    text = f"""a (float[N,16] x, float[N,24] z) => (float[N,12] y, float[N,M] u) {{
      h = MatMul(x, w) b = Add(h, bias) y = MatMul(b, v) u = {other} }}"""
    model = graph(text, {"w": random(16, 24), "bias": random(24), "v": random(24, 12)})
    masks = {"w": masked(model, "w", 1, 0)}
    before, feeds = model.clone(), runtime.one_sample(model, seed=0)
    tile(model, masks)
    assert sum(node.op_type == "Gather" for node in model.graph) == 3
    expected, actual = (runtime.run(runtime.make_session(m), feeds) for m in (before, model))
    for name, array_ in expected.items():
        np.testing.assert_allclose(actual[name], array_, atol=1e-4 * np.abs(array_).max())


def test_weights_that_are_an_input_too_stay() -> None:
    model = graph(MATMUL, {"w": random(16, 12)})
    mask = masked(model, "w", 1, 0)
    shapes, facts = runtime.concrete_shapes(model, runtime.one_sample(model, seed=0)), runtime.known_facts(model)
    model.graph.inputs.append(model.graph.initializers["w"])
    rewrite = TileLayers({"w": mask}, shapes, facts, FREE)
    rewrite(model)
    assert not rewrite.tiled and "input" in rewrite.plain["w"] and "w" in model.graph.initializers


@pytest.mark.parametrize(
    ("damage", "why"), [("name", ""), ("indices", "an index occurs twice"), ("weights", ""), ("tile", "computes 'x'")]
)
def test_a_damaged_layer_in_tiles_is_refused(damage: str, why: str) -> None:
    model = graph(MATMUL, {"w": random(16, 12)})
    tile(model, {"w": masked(model, "w", 1, 0)})
    node = next(node for node in model.graph if (node.name or "").startswith(PREFIX))
    if damage == "name":
        node.name, model.graph[0].name = "plain", f"{PREFIX}other"
    elif damage == "indices":
        index = node.inputs[1]
        assert index is not None and index.const_value is not None
        index.const_value = ir.Tensor(np.zeros_like(index.const_value.numpy()), name=index.name)
    elif damage == "tile":
        node.replace_input_with(0, model.graph.inputs[0])
    else:
        weight = next(v for n, v in model.graph.initializers.items() if n.endswith("/w"))
        weight.const_value = ir.Tensor(random(3, 2), name=weight.name)
    with pytest.raises(ModelError, match=f"cannot be joined.*{why}"):
        JoinTiles()(model)
