"""Caches of a decoder: the mask covers past and new tokens, also where its length has a name of its own."""

from __future__ import annotations

import decoders
import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, parser

from onnxprune import model_io
from onnxprune.graph.caches import cache_lengths, cache_sums
from onnxprune.graph.inference import infer, known_extents
from onnxprune.graph.narrowing import free_caches
from onnxprune.runtime.inputs import working_inputs

# The mask is read at places that are counted while the model runs, as PyTorch writes it: shapes contradict nothing.
DECODER = """g (int64[a, s] ids, int64[b, m] attention_mask, float[a, 2, p, 4] past_key, float[a, 2, q, 4] past_value)
    => (float[a, s, 8] y, float[a, 2, t, 4] key, float[a, 2, u, 4] value) {
    x = Gather<axis = 0>(table, ids)
    shape4 = Constant<value_ints = [0, 0, 2, 4]>()
    r = Reshape(x, shape4)
    k = Transpose<perm = [0, 2, 1, 3]>(r)
    key = Concat<axis = 2>(past_key, k)
    value = Concat<axis = 2>(past_value, k)
    lengths = Shape<start = 2, end = 3>(key)
    zero = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    last = Sub(lengths, one)
    column = Gather<axis = 1>(attention_mask, last)
    seen = Cast<to = 1>(column)
    rows = Unsqueeze(seen, one)
    m = MatMul(x, w)
    y = Mul(m, rows) }"""


def decoder() -> ir.Model:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["":17]> {DECODER}')
    rng = np.random.default_rng(0)
    for name, shape in (("table", (11, 8)), ("w", (8, 8))):
        proto.graph.initializer.append(helper.make_tensor(name, 1, shape, rng.standard_normal(shape).reshape(-1)))
    return model_io.load_any(proto)


def test_caches_are_inputs_that_grow_and_are_handed_out() -> None:
    network = decoder()
    assert {str(v.name): axis for v, axis in cache_lengths(network).items()} == {"past_key": 2, "past_value": 2}
    assert cache_sums(network) == {"q": ("p",), "m": ("p", "s"), "b": ("a",)}


def test_shapes_are_inferred_with_a_mask_that_covers_the_cache() -> None:
    facts = infer(decoder())
    for sizes in (facts.first.sizes, facts.second.sizes):
        assert sizes["m"] == sizes["p"] + sizes["s"] and sizes["q"] == sizes["p"] and sizes["b"] == sizes["a"]
    assert facts.first.sizes["s"] != facts.second.sizes["s"]


def test_inputs_with_a_cache_that_is_not_empty_are_found() -> None:
    (feeds,) = working_inputs(decoder(), count=1)
    assert feeds["past_key"].shape[2] > 0
    assert feeds["attention_mask"].shape[1] == feeds["past_key"].shape[2] + feeds["ids"].shape[1]


def test_a_model_without_caches_has_no_such_sums() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[N, 4] x) => (float[N, 4] y) {y = Relu(x)}'
    )
    assert cache_sums(model_io.load_any(proto)) == {}


def windows() -> onnx.ModelProto:
    """Attention of layer 0 over a window whose cache has a length of its own."""
    proto = decoders.fused()
    node = next(node for node in proto.graph.node if node.op_type == "GroupQueryAttention")
    node.attribute.extend(
        [helper.make_attribute("local_window_size", 16), helper.make_attribute("sliding_window_cache", 1)]
    )
    for value in (*proto.graph.input, *proto.graph.output):
        if ".0." in value.name:
            value.type.tensor_type.shape.dim[2].dim_param = "past_sliding_length"
    return proto


def test_the_width_of_a_cache_is_that_of_the_heads_that_extend_it() -> None:
    network = model_io.load_any(decoders.fused())
    known = known_extents(network)
    assert known.settled == {"kv_cache_dim": decoders.SIZE}
    assert known.sums == {"total_sequence_length": ("past_sequence_length", "sequence_length")}
    (feeds,) = working_inputs(network, count=1)
    assert feeds["past_key_values.0.key"].shape == (1, decoders.KV_HEADS, 4, decoders.SIZE)  # one prompt at a time
    assert feeds["attention_mask"].shape[1] == 4 + feeds["input_ids"].shape[1]


def test_a_cache_of_a_window_is_filled() -> None:
    """What lies in the rest of a window is whatever was in memory, in every run something else."""
    for free in (False, True):
        network = model_io.load_any(windows())
        assert not free or free_caches(network) == 4
        (feeds,) = working_inputs(network, count=1)
        assert feeds["past_key_values.0.key"].shape[2] == 16 and feeds["past_key_values.1.key"].shape[2] >= 16
