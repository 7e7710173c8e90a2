"""What rewriting changes, and what it leaves alone."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.structure.analysis import analyse
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove

from .graphs import constants, load, without
from .twins import Array, difference, run

MLP = """agraph (float[n, 4] x) => (float[n, 3] y) {
    a = MatMul(x, w)  b = Add(a, c)  h = Relu(b)  y = MatMul(h, v) }"""
WEIGHTS = {"w": (4, 6), "c": (6,), "v": (6, 3)}
X = {"x": np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)}


def both(
    text: str, removals: dict[tuple[str, int], list[int]], feeds: dict[str, Array], opset: int = 20, **weights: object
) -> ir.Model:
    """Remove units, check the result against the masked twin, and return the smaller model."""
    model, twin = load(text, opset, **weights), load(text, opset, **weights)  # type: ignore[arg-type]
    structure, other = analyse(model), analyse(twin)
    removed = without(structure, removals)
    remove(structure, removed)
    zero_units(other, removed)
    for a, b in zip(run(model, feeds), run(twin, feeds), strict=True):
        assert difference(a, b) < 1e-5
    return model


def test_kept_names_what_is_left_of_every_constant() -> None:
    structure = analyse(load(MLP, **WEIGHTS))
    kept = remove(structure, without(structure, {("w", 1): [1, 4]}))
    assert {name: {i: k.tolist() for i, k in axes.items()} for name, axes in kept.items()} == {
        "w": {1: [0, 2, 3, 5]},
        "c": {0: [0, 2, 3, 5]},
        "v": {0: [0, 2, 3, 5]},
    }


def test_surviving_weights_are_the_same_bits() -> None:
    before = constants(load(MLP, **WEIGHTS))
    after = constants(both(MLP, {("w", 1): [1, 4]}, X, **WEIGHTS))
    left = [0, 2, 3, 5]
    assert np.array_equal(after["w"], before["w"][:, left])
    assert np.array_equal(after["c"], before["c"][left]) and np.array_equal(after["v"], before["v"][left])


def test_nothing_removed_leaves_the_same_model() -> None:
    model = load(MLP, **WEIGHTS)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    structure = analyse(model)
    assert remove(structure, np.zeros(structure.terms.count, bool)) == {}
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_shapes_written_in_the_model_are_updated() -> None:
    text = MLP.replace("{", "<float[n, 6] h> {", 1)
    model = both(text, {("w", 1): [0]}, X, **WEIGHTS)
    hidden = next(v for node in model.graph for v in node.outputs if v.name == "h")
    assert hidden.shape is not None and hidden.shape[1] == 5
    assert value_shape(model, "w") == (4, 5)


def value_shape(model: ir.Model, name: str) -> tuple[int, ...]:
    """The shape that an initializer says it has."""
    shape = model.graph.initializers[name].shape
    assert shape is not None
    return tuple(int(n) for n in shape if isinstance(n, int))


def test_inputs_outputs_and_names_stay() -> None:
    before, after = load(MLP, **WEIGHTS), both(MLP, {("w", 1): [0]}, X, **WEIGHTS)
    assert [v.name for v in after.graph.inputs] == [v.name for v in before.graph.inputs]
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]
    assert set(after.graph.initializers) == set(before.graph.initializers)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=str)
def test_types_stay(dtype: type) -> None:
    name = {np.float16: "float16", np.float64: "double"}.get(dtype, "bfloat16")
    rng = np.random.default_rng(0)
    weights = {k: rng.standard_normal(shape).astype(dtype) for k, shape in WEIGHTS.items()}
    model = load(MLP.replace("float[", f"{name}["), **weights)
    structure = analyse(model)
    remove(structure, without(structure, {("w", 1): [2]}))
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.from_numpy(np.dtype(dtype))}
    assert np.array_equal(constants(model)["v"], np.delete(weights["v"], 2, axis=0))


# -- constants that are shapes --------------------------------------------------------------------------------------

HEADS = """agraph (float[n, 5, 8] x) => (float[n, 5, 8] y) {
    q = MatMul(x, wq)  r = Reshape(q, s)  t = Transpose <perm = [0, 2, 1, 3]> (r)
    k = MatMul(x, wk)  u = Reshape(k, s)  z = Transpose <perm = [0, 2, 3, 1]> (u)
    m = MatMul(t, z)  p = Softmax <axis = -1> (m)  o = MatMul(p, t)
    b = Transpose <perm = [0, 2, 1, 3]> (o)  f = Reshape(b, back)  y = MatMul(f, wo) }"""
HEADS_WEIGHTS = {
    "wq": (8, 12), "wk": (8, 12), "wo": (12, 8),
    "s": np.array([0, 5, 3, 4]), "back": np.array([0, 5, 12]),
}  # fmt: skip
SEQUENCE = {"x": np.random.default_rng(2).standard_normal((2, 5, 8)).astype(np.float32)}


def test_heads_and_head_sizes_go_through_reshapes() -> None:
    model = both(HEADS, {("t", 1): [1], ("t", 3): [0, 2]}, SEQUENCE, **HEADS_WEIGHTS)
    assert value_shape(model, "wq") == (8, 4) and value_shape(model, "wo") == (4, 8)


def test_a_shape_that_two_nodes_share_is_written_for_each() -> None:
    text = """agraph (float[n, 6] x) => (float[n, 2, 3] y, float[n, 2, 3] z) {
        a = MatMul(x, w)  b = Reshape(a, s)  c = Transpose <perm = [0, 2, 1]> (b)  d = MatMul(v, c)
        y = Transpose <perm = [0, 2, 1]> (d)  z = Reshape(x, s) }"""
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)}
    model = both(text, {("c", 1): [1]}, feeds, w=(6, 6), v=(3, 3), s=np.array([0, 2, 3]))
    targets = [node.inputs[1] for node in model.graph if node.op_type == "Reshape"]
    assert [t.const_value.numpy().tolist() for t in targets if t is not None and t.const_value is not None] == [
        [0, 2, 2],
        [0, 2, 3],
    ]


def test_a_scale_computed_from_a_shape_keeps_the_original_head_size() -> None:
    """1 / sqrt(d), with d taken from the tensor while the model runs."""
    text = """agraph (float[n, 5, 8] x) => (float[n, 5, 5] y)
        <int64 last = {-1}, float half = {-0.5}> {
        q = MatMul(x, wq)  k = MatMul(x, wk)  t = Transpose <perm = [0, 2, 1]> (k)  m = MatMul(q, t)
        s = Shape(q)  d = Gather(s, last)  f = Cast <to = 1> (d)  r = Pow(f, half)  y = Mul(m, r) }"""
    model = both(text, {("wq", 1): [0, 3, 4]}, SEQUENCE, wq=(8, 6), wk=(8, 6))
    assert value_shape(model, "wq") == (8, 3)
    original = run(load(text, wq=(8, 6), wk=(8, 6)), SEQUENCE)[0]
    assert difference(run(model, SEQUENCE)[0], original) > 1e-3


def test_the_scale_of_a_fused_attention_is_written_out() -> None:
    text = """agraph (float[n, 5, 8] x) => (float[n, 5, 8] y) {
        q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        a = Attention <q_num_heads = 3, kv_num_heads = 3> (q, k, v)  y = MatMul(a, wo) }"""
    weights = {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8)}
    model = both(text, {("wq", 1): [1], ("wv", 1): [4]}, SEQUENCE, opset=23, **weights)
    node = next(n for n in model.graph if n.op_type == "Attention")
    assert math.isclose(node.attributes["scale"].as_float(), 1 / math.sqrt(4), rel_tol=1e-6)


def test_a_target_computed_while_the_model_runs_is_corrected() -> None:
    text = """agraph (float[n, s, 8] x) => (float[n, s, 8] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] heads = {3}, int64[1] size = {4},
         int64[1] wide = {12}> {
        q = MatMul(x, w)  sh = Shape(x)  n0 = Gather(sh, zero)  s0 = Gather(sh, one)
        nu = Unsqueeze(n0, first)  su = Unsqueeze(s0, first)
        apart = Concat <axis = 0> (nu, su, heads, size)  together = Concat <axis = 0> (nu, su, wide)
        r = Reshape(q, apart)  t = Relu(r)  f = Reshape(t, together)  y = MatMul(f, v) }"""
    model = both(text, {("r", 2): [0], ("r", 3): [1]}, SEQUENCE, w=(8, 12), v=(12, 8))
    assert value_shape(model, "w") == (8, 6)


def test_an_uneven_slice_becomes_a_gather_and_later_nodes_still_know_their_axes() -> None:
    text = """agraph (float[n, 8] x) => (float[n, 2] y)
        <int64[1] a = {0}, int64[1] b = {8}, int64[1] c = {1}, int64[1] d = {2}, int64[4] order = {3, 1, 0, 2}> {
        h = MatMul(x, w)  s = Slice(h, a, b, c, d)  g = Gather <axis = 1> (s, order)  y = MatMul(g, v) }"""
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)}
    model = both(text, {("w", 1): [1]}, feeds, w=(8, 8), v=(4, 2))
    assert [node.op_type for node in model.graph] == ["MatMul", "Gather", "Slice", "Gather", "MatMul"]


def test_an_expand_to_a_shape_read_from_the_graph_is_corrected() -> None:
    """x / |x| as the legacy exporter writes it: the norm is expanded to Shape(x), which keeps the original numbers."""
    text = """agraph (float[n, 4] x) => (float[n, 3] y) {
        h = MatMul(x, w)  l = ReduceL2 <axes = [-1]> (h)  s = Shape(h)  e = Expand(l, s)
        d = Div(h, e)  y = MatMul(d, v) }"""
    model = both(text, {("w", 1): [0, 3]}, X, opset=17, w=(4, 6), v=(6, 3))
    assert value_shape(model, "w") == (4, 4)


def test_a_slice_that_picks_nothing_ties_nothing() -> None:
    """Rotary embeddings over the whole of a head leave an empty rest behind them."""
    text = """agraph (float[n, 4] x) => (float[n, 3] y)
        <int64[1] end = {6}, int64[1] one = {1}, int64[1] most = {9223372036854775807}> {
        h = MatMul(x, w)  g = Sin(h)  rest = Slice(h, end, most, one)  j = Concat <axis = 1> (g, rest)
        y = MatMul(j, v) }"""
    model = both(text, {("w", 1): [1, 2]}, X, w=(4, 6), v=(6, 3))
    assert value_shape(model, "w") == (4, 4)


def test_gather_nd_with_constant_indices_of_one_axis_is_a_gather() -> None:
    """x[:, [5, 0, 1]] as the dynamo exporter writes it."""
    text = """agraph (float[n, 4] x) => (float[n, 3] y) {
        h = MatMul(x, w)  t = Transpose <perm = [1, 0]> (h)  g = GatherND(t, picked)
        u = Transpose <perm = [1, 0]> (g)  y = MatMul(u, v) }"""
    model = both(text, {("w", 1): [0, 2]}, X, w=(4, 6), v=(3, 3), picked=np.array([[-1], [0], [1]]))
    assert value_shape(model, "w") == (4, 4) and value_shape(model, "v") == (2, 3)
    assert constants(model)["g_extent"].tolist() == [[3], [0]]


def test_a_single_picked_index_stays_a_single_number() -> None:
    """x[:, 3] after channel 1 is gone is x[:, 2], still without an axis of its own."""
    text = """agraph (float[n, 4] x) => (float[n, 3] y, float[n] z) {
        h = MatMul(x, w)  z = Gather <axis = 1> (h, three)  y = MatMul(h, v) }"""
    model = both(text, {("w", 1): [1]}, X, w=(4, 6), v=(6, 3), three=np.array(3))
    index = constants(model)["z_extent"]
    assert index.shape == () and index == 2


def test_constants_of_the_same_bytes_and_another_shape_are_not_shared() -> None:
    """x[:, 3] and x[:, [3]] both move to index 2: one is a number, the other a list."""
    text = """agraph (float[n, 4] x) => (float[n, 3] y, float[n] z, float[n, 2] u) {
        h = MatMul(x, w)  z = Gather <axis = 1> (h, three)  g = Gather <axis = 1> (h, list)
        u = MatMul(g, t)  y = MatMul(h, v) }"""
    weights = {"w": (4, 6), "v": (6, 3), "t": (1, 2), "three": np.array(3), "list": np.array([3])}
    model = both(text, {("w", 1): [1]}, X, **weights)
    picked = [n.inputs[1] for n in model.graph if n.op_type == "Gather"]
    assert [v.const_value.numpy().tolist() for v in picked if v is not None and v.const_value is not None] == [2, [2]]


EXPANDED = """agraph (float[n, 4] x) => (float[a, b] y)
    <int64[3] apart = {0, 1, 6}> {
    h = MatMul(x, w)  r = Reshape(h, apart)  e = Expand(r, s)  y = MatMul(e, v) }"""


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([1, 5, 1], [1, 5, 1]),
        ([1, 5, 6], [1, 5, 4]),
        ([5, 6], [5, 4]),
        ([2, 1, 1, 6], [2, 1, 1, 4]),
        ([6], [4]),
        ([5, 1], [5, 1]),
    ],
)
def test_an_expand_names_the_new_extents_and_keeps_its_ones(shape: list[int], expected: list[int]) -> None:
    model = both(EXPANDED, {("w", 1): [0, 3]}, X, w=(4, 6), v=(6, 3), s=np.array(shape))
    target = next(n.inputs[1] for n in model.graph if n.op_type == "Expand")
    assert target is not None and target.const_value is not None
    assert target.const_value.numpy().tolist() == expected


def test_what_an_expand_repeats_can_go_too() -> None:
    text = """agraph (float[n, 1, 4] x) => (float[n, 5, 3] y) <int64[3] s = {1, 6, 1}> {
        e = Expand(x, s)  h = Mul(e, w)  t = MatMul(u, h)  y = MatMul(t, v) }"""
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 1, 4)).astype(np.float32)}
    model = both(text, {("u", 1): [0, 3]}, feeds, w=(6, 4), u=(5, 6), v=(4, 3))
    assert value_shape(model, "w") == (4, 4)
    target = next(n.inputs[1] for n in model.graph if n.op_type == "Expand")
    assert target is not None and target.const_value is not None
    assert target.const_value.numpy().tolist() == [1, 4, 1]


@pytest.mark.parametrize(("opset", "split"), [(12, "split = [2, 4]"), (18, "num_outputs = 2")])
def test_the_runs_of_a_split_are_written_as_the_opset_has_them(opset: int, split: str) -> None:
    text = f"""agraph (float[n, 4] x) => (float[n, 2] y, float[n, 2] z) {{
        h = MatMul(x, w)  a, b = Split <axis = 1, {split}> (h)  y = MatMul(a, u)  z = MatMul(b, v) }}"""
    sizes = (2, 4) if opset == 12 else (3, 3)
    model = both(text, {("w", 1): [0, 5]}, X, opset=opset, w=(4, 6), u=(sizes[0], 2), v=(sizes[1], 2))
    assert value_shape(model, "w") == (4, 4)


def test_groups_of_a_convolution_are_counted_anew() -> None:
    text = """agraph (float[n, 4, 5, 5] x) => (float[n, 2, 5, 5] y) {
        a = Conv(x, w)  b = Conv <group = 3> (a, g)  y = Conv(b, v) }"""
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)}
    weights = {"w": (6, 4, 1, 1), "g": (6, 2, 1, 1), "v": (2, 6, 1, 1)}
    model = both(text, {("g", 0): [4]}, feeds, **weights)
    grouped = next(n for n in model.graph if n.attributes.get_int("group", 1) != 1)
    assert grouped.attributes["group"].as_int() in (2, 3)
    assert value_shape(model, "g")[1] in (1, 2)


def test_attributes_that_count_nothing_are_not_written() -> None:
    text = """agraph (float[n, 4, 5, 5] x) => (float[n, 2, 5, 5] y) { a = Conv(x, w)  b = Relu(a)  y = Conv(b, v) }"""
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)}
    model = both(text, {("w", 0): [1, 2]}, feeds, w=(6, 4, 1, 1), v=(2, 6, 1, 1))
    assert not any(node.attributes for node in model.graph)


def test_hidden_size_of_a_recurrent_cell_is_written() -> None:
    text = """agraph (float[t, n, 4] x) => (float[t, 1, n, 2] y) {
        h, a, b = LSTM <hidden_size = 6> (x, w, r, c)  y = MatMul(h, v) }"""
    weights = {"w": (1, 24, 4), "r": (1, 24, 6), "c": (1, 48), "v": (6, 2)}
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)}
    model = both(text, {("r", 2): [1, 5]}, feeds, **weights)
    assert next(iter(model.graph)).attributes["hidden_size"].as_int() == 4
    assert value_shape(model, "r") == (1, 16, 4)
