"""Inputs made up from the graph alone are valid, seeded, and come in several batch sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_io_models import mlp
from onnx import helper, parser

from onnxprune import model_io
from onnxprune.errors import DataError
from onnxprune.runtime import candidate_sizes, dynamic_dims, make_session, random_inputs, run, working_inputs
from onnxprune.runtime.inputs import tells_something


def model(text: str, opset: int = 17) -> ir.Model:
    return model_io.load_any(parser.parse_model(f'<ir_version: 8, opset_import: ["":{opset}]> {text}'))


def test_the_same_seed_gives_the_same_numbers() -> None:
    network = model_io.load_any(mlp())
    first, second, other = (random_inputs(network, seed=seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any() and first.dtype == np.float32 and first.shape == (2, 8)


def test_sizes_are_named_by_symbol_or_by_place() -> None:
    network = model("g (float[N, T, 4] x, float[?, 3] z) => (float[N, T, 4] y) { y = Relu(x) }")
    assert dynamic_dims(network) == {"N": True, "T": False, "z[0]": True}
    shapes = {name: array.shape for name, array in random_inputs(network, sizes={"N": 5, "T": 7, "z[0]": 2}).items()}
    assert shapes == {"x": (5, 7, 4), "z": (2, 3)}
    with pytest.raises(DataError, match="'M'"):
        random_inputs(network, sizes={"M": 1})


def test_a_dimension_that_is_a_sum_of_others() -> None:
    network = model("g (float[N, s] x, float[N, p] past) => (float[N, s] y) { y = Relu(x) }")
    network.graph.inputs[1].shape = ir.Shape(["N", "past"])
    mask = ir.Value(
        name="mask",
        shape=ir.Shape(["N", "past + s"]),
        type=ir.TensorType(ir.DataType.INT64),
    )
    network.graph.inputs.append(mask)
    feeds = random_inputs(network, sizes={"N": 2, "s": 3, "past": 4})
    assert feeds["mask"].shape == (2, 7) and feeds["mask"].all()


def test_a_model_without_dynamic_sizes_has_one_setting() -> None:
    assert list(candidate_sizes(model("g (float[2] x) => (float[2] y) { y = Relu(x) }"))) == [{}]


def test_ids_fit_every_embedding_they_reach() -> None:
    network = model("""g (int64[N, T] ids, int32[N, T] kind) => (float[N, T, 2] y)
        <float[5, 2] words = {0,1,2,3,4,5,6,7,8,9}, float[2, 2] kinds = {0,1,2,3}> {
            flat = Cast <to = 7> (kind)
            a = Gather(words, ids)  b = Gather(kinds, flat)  y = Add(a, b) }""")
    feeds = random_inputs(network, sizes={"N": 50, "T": 50})
    assert set(np.unique(feeds["ids"])) == {0, 1, 2, 3, 4}
    assert set(np.unique(feeds["kind"])) == {0, 1}
    assert feeds["kind"].dtype == np.int32


def test_an_offset_before_the_embedding_counts() -> None:
    network = model("""g (int64[N] position) => (float[N, 1] y) <float[6, 1] table = {0,1,2,3,4,5}, int64 two = {2}> {
        shifted = Add(position, two)  y = Gather(table, shifted) }""")
    assert random_inputs(network, sizes={"N": 200})["position"].max() == 3


def test_an_embedding_inside_a_branch_counts() -> None:
    network = model("""g (int64[N] ids, bool c) => (float[N, 1] y) <float[3, 1] table = {0,1,2}> {
        y = If (c) <then_branch = a () => (float[N, 1] t) { t = Gather(table, ids) },
                    else_branch = b () => (float[N, 1] e) { e = Gather(table, ids) }> }""")
    assert random_inputs(network, sizes={"N": 200})["ids"].max() == 2


def test_a_constant_that_the_graph_compares_with() -> None:
    scalar = model("""g (int64 rate, float[2] x) => (float[2] y) <int64 expected = {16000}> {
        same = Equal(rate, expected)
        y = If (same) <then_branch = a () => (float[2] t) { t = Relu(x) },
                       else_branch = b () => (float[2] e) { e = Neg(x) }> }""")
    assert random_inputs(scalar)["rate"] == 16000
    ids = model("""g (int64[N, T] ids) => (bool[N, T] end, float[N, T, 1] y)
        <int64 eos = {7}, float[9, 1] table = {0,1,2,3,4,5,6,7,8}> { end = Equal(ids, eos) y = Gather(table, ids) }""")
    drawn = random_inputs(ids, sizes={"N": 4, "T": 6})["ids"]
    assert (drawn[:, -1] == 7).all() and drawn.max() <= 8 and len(np.unique(drawn)) > 2


def test_masks_let_everything_through_and_bytes_are_bytes() -> None:
    network = model("""g (int64[N, 4] attention_mask, bool[N, 4] pad_mask, uint8[N, 400] image, bool[N, 64] flag)
        => (int64[N, 4] y) { y = Identity(attention_mask) }""")
    feeds = random_inputs(network)
    assert feeds["attention_mask"].all() and feeds["pad_mask"].all()
    assert feeds["image"].max() > 200 and 0 < feeds["flag"].mean() < 1


def test_weights_settle_the_width_of_a_dynamic_axis() -> None:
    network = model("""g (float[N, C, H, W] image) => (float[N, 1, H, W] y) <float[1, 5, 1, 1] w = {1,1,1,1,1}> {
        y = Conv(image, w) }""")
    (feeds,) = working_inputs(network)
    assert feeds["image"].shape[1] == 5


def test_sets_of_different_batch_sizes_that_really_run() -> None:
    network = model_io.load_any(mlp())
    sets = working_inputs(network, count=3)
    assert len({feeds["x"].shape[0] for feeds in sets}) == 3
    session = make_session(network)
    for feeds in sets:
        run(session, feeds)


def test_a_batch_that_is_fixed_in_truth_gives_one_set() -> None:
    network = model("""g (float[N, 2] x) => (float[1, 4] y) <int64[2] to = {1, 4}> { y = Reshape(x, to) }""")
    assert [feeds["x"].shape for feeds in working_inputs(network, count=2)] == [(2, 2)]


def test_inputs_that_cannot_be_made_up() -> None:
    text = "g (seq(float[2]) x) => (int64 y) { y = SequenceLength(x) }"
    with pytest.raises(DataError, match="no tensor"):
        random_inputs(model(text))
    impossible = model("""g (float[N, 2] x) => (float[7, 5] y) <int64[2] to = {7, 5}> { y = Reshape(x, to) }""")
    with pytest.raises(DataError, match="npz"):
        working_inputs(impossible)


def test_initializers_that_are_inputs_are_not_fed() -> None:
    old = mlp(opset=8, ir_version=3)
    for tensor in old.graph.initializer:
        old.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert list(random_inputs(model_io.load_any(old))) == ["x"]


def test_the_light_models_run(light_models: list[Path]) -> None:
    path = next(path for path in light_models if "squeezenet" in path.name)
    (feeds,) = working_inputs(model_io.load(path))
    assert feeds["data_0"].shape == (1, 3, 224, 224)


@pytest.mark.zoo
def test_every_real_model_gets_inputs_that_run(shared: Path) -> None:
    paths = sorted((shared / "zoo").glob("*.onnx"))
    assert paths
    for path in paths:
        network = model_io.load(path)
        assert working_inputs(network, count=2), path.name
        assert onnx.load(path).graph.output[0].name in run(make_session(network), working_inputs(network)[0])


# --- what an input must be like to run, or to tell anything


def test_a_mask_of_either_sense_lets_something_through() -> None:
    """In PyTorch's sense True is left out: a mask of ones makes every output NaN."""
    text = """g (float[N, T, 4] x, bool[N, T] padding_mask) => (float[N, T, 4] y) <int64[1] one = {1}> {
        t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, t) m = Unsqueeze(padding_mask, one)
        w = Where(m, low, s) p = Softmax(w) y = MatMul(p, x) }"""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["":17]> {text}')
    proto.graph.initializer.append(helper.make_tensor("low", 1, [], [float("-inf")]))
    network = model_io.load_any(proto)
    (feeds,) = working_inputs(network)
    assert not feeds["padding_mask"].any()
    assert np.isfinite(run(make_session(network), feeds)["y"]).all()
    kept = network.clone()  # in the other sense, ones are right as they are
    where = next(node for node in kept.graph if node.op_type == "Where")
    low, scores = where.inputs[1], where.inputs[2]
    where.replace_input_with(1, scores)
    where.replace_input_with(2, low)
    assert working_inputs(kept)[0]["padding_mask"].all()


def test_outputs_that_are_all_nan_or_empty_tell_nothing() -> None:
    nan, empty, good = np.full(3, np.nan), np.zeros((0, 4)), np.ones(2)
    assert not tells_something({"y": nan}) and not tells_something({"y": empty})
    assert not tells_something({"y": nan, "z": np.ones(2, int)})
    assert tells_something({"y": good, "z": empty}) and tells_something({"y": np.array([np.nan, 1])})


def test_the_first_inputs_are_taken_where_none_tells_anything() -> None:
    network = model(
        "g (float[N, 3] x) => (float[N, 3] y) { a = Abs(x) n = Neg(a) m = Sub(n, a) s = Sub(m, m) y = Log(m) }"
    )
    assert working_inputs(network)[0]["x"].shape == (2, 3)


@pytest.mark.parametrize("factor", [8, 10, 7])
def test_extents_are_multiples_of_what_a_reshape_says(factor: int) -> None:
    network = model(f"""g (float[frames, 5] x) => (float[clips, 5] y) <int64[3] of = {{-1, {factor}, 5}}>
        {{ c = Reshape(x, of) y = ReduceMean<axes = [1], keepdims = 0>(c) }}""")
    sets = working_inputs(network, count=2)
    assert [len(feeds["x"]) % factor for feeds in sets] == [0, 0] and len({len(feeds["x"]) for feeds in sets}) == 2


@pytest.mark.parametrize("least", [1500, 30000])
def test_long_extents_are_tried(least: int) -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[N, 1, samples] x) => (float[N, 1, out] y)'
        " { y = Conv<strides = [100]>(x, w) }"
    )
    proto.graph.initializer.append(helper.make_tensor("w", 1, [1, 1, least], np.ones(least, np.float32)))
    (feeds,) = working_inputs(model_io.load_any(proto))
    assert feeds["x"].shape[2] >= least


def test_a_total_length_is_past_and_sequence_together() -> None:
    network = model("""g (float[N, sequence, 4] x, float[N, past, 4] past_key, float[N, total] attention_mask)
        => (float[N, total] y) { k = Concat<axis = 1>(past_key, x) r = ReduceMean<axes = [2], keepdims = 0>(k)
        y = Mul(r, attention_mask) }""")
    (feeds,) = working_inputs(network)
    assert feeds["attention_mask"].shape[1] == feeds["x"].shape[1] + feeds["past_key"].shape[1]


def test_a_sum_is_found_where_no_name_tells() -> None:
    network = model("""g (float[N, s1, 4] x, float[N, s2, 4] cache, float[N, s53] bias)
        => (float[N, 1, 1] y) <int64[1] one = {1}, int64[1] two = {2}> { k = Concat<axis = 1>(cache, x)
        r = ReduceMean<axes = [2], keepdims = 0>(k) a = Unsqueeze(r, one) b = Unsqueeze(bias, two)
        y = MatMul(a, b) }""")
    (feeds,) = working_inputs(network)
    assert feeds["bias"].shape[1] == feeds["x"].shape[1] + feeds["cache"].shape[1] > feeds["x"].shape[1]


def test_a_batch_on_the_second_axis_is_one() -> None:
    network = model("g (float[time, batch, 4] x) => (float[time, batch, 4] y) { y = Relu(x) }")
    assert dynamic_dims(network) == {"time": False, "batch": True}
    assert [feeds["x"].shape[1] for feeds in working_inputs(network, count=2)] == [2, 1]


def test_made_up_inputs_are_not_huge() -> None:
    text = '<ir_version: 8, opset_import: ["":17]> g (float[p, q, r, s] x) => (float[p, q, r, s] y) { y = Relu(x) }'
    network = model_io.load_any(parser.parse_model(text))
    sizes = list(candidate_sizes(network))
    assert sizes and all(np.prod(list(each.values())) <= 1 << 25 for each in sizes)
    fixed = '<ir_version: 8, opset_import: ["":17]> g (float[N, 9000, 9000] x) => (float[N, k, l] y) { y = Relu(x) }'
    assert next(candidate_sizes(model_io.load_any(parser.parse_model(fixed)))) == {"N": 2}


def test_a_root_or_a_logarithm_gets_positive_numbers() -> None:
    text = """<ir_version: 8, opset_import: ["":17]> g (float[N, 4] x, float[N, 4] z) => (float[one, one] y)
        { a = Sqrt(x) b = Log(z) c = Add(a, b) y = ReduceSum<keepdims = 1>(c) }"""
    network = model_io.load_any(parser.parse_model(text))
    sets = working_inputs(network, count=2)
    assert len({feeds["x"].shape for feeds in sets}) == 2
    for feeds in sets:
        assert np.isfinite(run(make_session(network), feeds)["y"]).all()


@pytest.mark.parametrize(
    "text",
    [
        """g (float[1, 2, 16, 16] x, float[r, 4] boxes, int64[r] image) => (float[r, 2, 2, 2] y)
        { y = RoiAlign<output_height = 2, output_width = 2>(x, boxes, image) }""",
        """g (float[N, 6] x, int64[k] i) => (float[N, k, 6] y)
        <int64[1] one = {1}> { u = Unsqueeze(x, one) y = Gather<axis = 1>(u, i) }""",
        """g (float[3, 6] x, int64[k] i) => (float[k, 6] y)
        <int64 ten = {10}> { j = Sub(i, ten) y = Gather(x, j) }""",
        """g (float[9, 6] x, int64[1] start, int64[1] end) => (float[k, 6] y) { y = Slice(x, start, end) }""",
        """g (float[6, 6] x, int64[1] k, int64[2] shape) => (float[a, b] y, int64[c, d] i)
        { z = Reshape(x, shape) y, i = TopK(z, k) }""",
    ],
    ids=["batch of an RoiAlign", "axis of one element", "offset", "start before end", "shape and count"],
)
def test_integers_that_run_are_found_by_trying(text: str) -> None:
    network = model(text)
    session = make_session(network)
    for feeds in working_inputs(network, count=2):
        assert run(session, feeds)["y"].size
