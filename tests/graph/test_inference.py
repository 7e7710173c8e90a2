"""Settings of free dimensions that belong together, so that shapes are inferred without contradictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, parser
from small_models import graph, random

from onnxprune import model_io
from onnxprune.graph.hints import give_hints
from onnxprune.graph.inference import find_extents, infer
from onnxprune.passes.normalise import Normalise


def model(text: str, **weights: tuple[int, ...]) -> ir.Model:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["":17, "com.microsoft":1]> {text}')
    for name, shape in weights.items():
        proto.graph.initializer.append(helper.make_tensor(name, 1, shape, np.ones(shape, np.float32)))
    return model_io.load_any(proto)


DECODER = """g (float[N, {a}, 4] x, float[N, {b}, 4] cache, float[N, {c}] mask) => (float[N, q] y) {{
    k = Concat<axis = 1>(cache, x) r = ReduceMean<axes = [2], keepdims = 0>(k) y = Mul(r, mask) }}"""


def test_a_mask_as_long_as_two_others_together() -> None:
    network = model(DECODER.format(a="s1", b="s7", c="s53"))
    facts = infer(network)
    assert facts.failures == 0 and find_extents(network).sums == {"s53": ("s1", "s7")}
    for sizes in (facts.first.sizes, facts.second.sizes):
        assert sizes["s53"] == sizes["s1"] + sizes["s7"]
    assert facts.first.sizes != facts.second.sizes


def test_dimensions_without_names_are_related_too() -> None:
    network = model(DECODER.format(a="?", b="?", c="?"))
    assert find_extents(network).sums == {"mask[1]": ("x[1]", "cache[1]")} and infer(network).failures == 0


def test_the_width_of_a_cache_follows_from_the_operator() -> None:
    network = model(
        """g (float[N, T, 32] x, float[N, 2, past, width] pk, float[N, 2, past, width] pv, int32[N] lens, int32 total)
        => (float[N, T, 64] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        y, a, b = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, v, pk, pv, lens, total) }""",
        wq=(32, 64), wk=(32, 32), wv=(32, 32),
    )  # fmt: skip
    assert find_extents(network).settled == {"width": 16}
    assert infer(network).first.sizes["width"] == infer(network).second.sizes["width"] == 16


def test_the_state_of_a_recurrent_layer_is_as_wide_as_its_output() -> None:
    network = model(
        """g (float[T, N, 8] x, float[one, N, hidden] h) => (float[T, one, N, 5] y)
        { y, last = GRU<hidden_size = 5>(x, w, r, , , h) }""",
        w=(1, 15, 8), r=(1, 15, 5),
    )  # fmt: skip
    assert find_extents(network).settled == {"one": 1, "hidden": 5}


def test_a_kernel_longer_than_what_it_runs_over_is_a_contradiction() -> None:
    network = model("g (float[N, 1, s] x) => (float[N, 1, o] y) { y = Conv<strides = [100]>(x, w) }", w=(1, 1, 3000))
    facts = infer(network)
    assert facts.failures == 0 and min(facts.first.sizes["s"], facts.second.sizes["s"]) >= 3000


def test_extents_of_given_inputs_are_tried() -> None:
    """20 x 60 is one way to fill the last weight, which the graph alone does not tell; the batch stays free."""
    network = model("g (float[N, p, q] x) => (float[N, 2] y) { f = Flatten(x) y = MatMul(f, w) }", w=(1200, 2))
    assert infer(network).first.sizes["p"] != 20
    give_hints(network, samples=[{"x": np.zeros((2, 20, 60), np.float32)}])
    facts = infer(network)
    assert facts.failures == 0 and (facts.first.sizes["p"], facts.first.sizes["q"]) == (20, 60)
    assert facts.first.sizes["N"] != facts.second.sizes["N"]


@pytest.mark.parametrize("axis", [0, 1])
def test_minus_one_is_a_dimension_of_any_extent(axis: int) -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[N, M] x) => (float[N, M] y) { y = Relu(x) }'
    )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[axis].dim_value = -1
    for network in (model_io.load_any(proto), model_io.load_any(ir.from_proto(proto))):
        facts = infer(network)
        shapes = [probe.shapes[network.graph.outputs[0]][axis] for probe in (facts.first, facts.second)]
        assert shapes[0] != shapes[1] and all(extent is not None and extent > 0 for extent in shapes)


def test_nodes_that_are_alike_are_inferred_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = "".join(f"a{i} = MatMul(x{i}, w{i}) x{i + 1} = Relu(a{i})" for i in range(9))
    model = graph(
        f"agraph (float[2,8] x0) => (float[2,8] x9) {{ {layers} }}", {f"w{i}": random(8, 8) for i in range(9)}
    )
    asked: list[str] = []
    ask = onnx.shape_inference.infer_node_outputs

    def counted(schema: onnx.defs.OpSchema, *rest: Any, **more: Any) -> Any:
        asked.append(schema.name)
        return ask(schema, *rest, **more)

    monkeypatch.setattr(onnx.shape_inference, "infer_node_outputs", counted)
    facts = infer(model)
    assert {facts.shape(v) for node in model.graph for v in node.outputs} == {(2, 8)}
    assert asked.count("MatMul") == 1


def test_nodes_that_differ_in_attributes_or_content_are_not_alike() -> None:
    model = graph(
        "agraph (float[2,3,4] x) => (float[4,2,3] a, float[3,4,2] b, float[6,4] c, float[2,12] d) {"
        "a = Transpose <perm = [2,0,1]> (x) b = Transpose <perm = [1,2,0]> (x)"
        "c = Reshape(x, s) d = Reshape(x, t) }",
        {"s": np.array([6, 4]), "t": np.array([2, 12])},
    )
    facts = infer(model)
    assert [facts.shape(v) for v in model.graph.outputs] == [(4, 2, 3), (3, 4, 2), (6, 4), (2, 12)]


HEAD = """c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w) r = Relu(c)
          p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)"""


@pytest.mark.parametrize(
    ("shape", "body", "weights", "settled"),
    [
        ("N, C, H, W", HEAD + "f = Flatten(p) y = MatMul(f, v)", {"w": (4, 1, 3, 3), "v": (196, 3)}, (14, 14)),
        ("N, 3, H, W", HEAD + "t = Constant<value_ints = [-1, 144]>() f = Reshape(p, t) y = MatMul(f, v)",
         {"w": (4, 3, 3, 3), "v": (144, 3)}, (12, 12)),
        ("N, C, H, W", "f = Flatten(x) y = MatMul(f, v)", {"v": (768, 3)}, (16, 16)),
        ("N, c, h, w", "t = Constant<value_ints = [0, 60]>() f = Reshape(x, t) y = MatMul(f, v)", {"v": (60, 3)}, None),
        ("N, T, F", "h = MatMul(x, w) f = Flatten(h) y = MatMul(f, v)", {"w": (6, 8), "v": (8 * 50, 3)}, (50, 6)),
    ],
    ids=["product", "reshape", "flatten", "one axis", "sequence"],
)  # fmt: skip
def test_a_width_behind_the_input_settles_its_extents(
    shape: str, body: str, weights: dict[str, tuple[int, ...]], settled: tuple[int, int] | None
) -> None:
    network = model(f"g (float[{shape}] x) => (float[m, k] y) {{ {body} }}", **weights)
    extents = find_extents(network)
    facts = infer(network)
    assert facts.failures == 0
    sizes = [facts.first.sizes[name.strip()] for name in shape.split(",")[1:] if not name.strip().isdigit()]
    assert settled is None or tuple(sizes[-2:]) == settled
    assert facts.first.sizes["N"] != facts.second.sizes["N"] and "N" not in extents.settled


def test_an_extent_that_nothing_fits_stays_free() -> None:
    network = model("g (float[N, 3, H, W] x) => (float[m, k] y) { f = Flatten(x) y = MatMul(f, v) }", v=(100, 3))
    assert not find_extents(network).settled and infer(network).failures


PATCHES = """g (float[N, c, h, w] image) => (float[N, m, 4] y) {
    a = Cast<to = 1>(image) p = Conv<kernel_shape = [4, 4], strides = [4, 4]>(a, k)
    shape = Constant<value_ints = [0, 4, -1]>() f = Reshape(p, shape) t = Transpose<perm = [0, 2, 1]>(f)
    two = Concat<axis = 1>(t, t) TABLE y = Add(two, TOLD) }"""


@pytest.mark.parametrize("table", ["constant", "picked"])
def test_a_table_of_positions_settles_the_side_of_an_image(table: str) -> None:
    """25 patches of 4 x 4, twice: the picture is 20 x 20 with 3 channels, which no node beside the table tells."""
    text, shapes = PATCHES.replace("TABLE", "").replace("TOLD", "places"), {"places": (1, 50, 4)}
    if table == "picked":
        numbers = ", ".join(map(str, range(50)))
        picked = f"rows = Constant<value_ints = [{numbers}]>() places = Gather(table, rows)"
        text, shapes = PATCHES.replace("TABLE", picked).replace("TOLD", "places"), {"table": (60, 4)}
    network = model(text, k=(4, 3, 4, 4), **shapes)
    Normalise()(network)
    facts = infer(network)
    assert facts.failures == 0
    for sizes in (facts.first.sizes, facts.second.sizes):
        assert (sizes["c"], sizes["h"], sizes["w"]) == (3, 20, 20)
    assert facts.first.sizes["N"] != facts.second.sizes["N"]
