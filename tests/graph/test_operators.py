"""The table of operators: what it promises of contractions, and how others enter operators of their own."""

from __future__ import annotations

import inspect
import math

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune import model_io
from onnxprune.graph import operators as table
from onnxprune.graph.layers import slots_of
from onnxprune.graph.multiply_adds import no_products
from onnxprune.graph.operators import operator_named, operator_of, operators, register
from onnxprune.graph.properties import Operator
from onnxprune.graph.size import figures, macs_of
from onnxprune.structure import registry

_TIES_A_SUM = ("contract(", "convolution(", "matmul_like(", "gemm_axes(", "_integer_matmul(", "attend(", "_tie_label(")


def contractions() -> list[str]:
    """The operators whose rule ties a summed pair of axes or notes weights, as their source says."""
    sources = {name: inspect.getsource(rule) for name, rule in registry.RULES.items()}
    return sorted(n for n, text in sources.items() if "view.weight(" in text or any(c in text for c in _TIES_A_SUM))


def test_the_contractions_are_found() -> None:
    assert {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "Attention", "QLinearConv"} <= set(
        contractions()
    )
    assert len(contractions()) >= 25


@pytest.mark.parametrize("name", contractions())
def test_a_contraction_is_counted(name: str) -> None:
    assert operator_named(name).counted


@pytest.mark.parametrize("name", [n for n in contractions() if "attend(" not in inspect.getsource(registry.RULES[n])])
def test_a_contraction_says_where_its_weights_sit(name: str) -> None:
    operator = operator_named(name)
    assert operator.equation or operator.weights
    for slot in operator.weights:
        assert slot.output != slot.reduction


def test_what_has_weights_is_counted() -> None:
    assert not [name for name, operator in operators().items() if operator.contracts and not operator.counted]


def test_every_entry_is_an_operator_that_rules_know() -> None:
    known = {*registry.RULES, *registry.REASONS}
    layouts = ("com.microsoft.nchwc::", "com.ms.internal.nhwc::")  # the same operators in either
    assert [n for n in operators() if n not in known and not n.startswith(layouts)] == [
        "com.microsoft::SimplifiedLayerNormalization"
    ]


def test_axes_of_an_einsum_follow_from_its_equation() -> None:
    node = ir.node("Einsum", [ir.Value(name="x"), ir.Value(name="w")], {"equation": "...i,oi->...o"})
    (slot,) = slots_of(node)
    assert (slot.input, slot.output, slot.reduction, slot.data, slot.data_axis) == (1, 0, 1, 0, -1)


# -- multiply-adds --------------------------------------------------------------------------------------------------

MICROSOFT = "com.microsoft"
HEADS = {"num_heads": 4, "kv_num_heads": 2}
SHAPES = [
    ("FusedGemm", MICROSOFT, [(5, 3), (4, 3)], [(5, 4)], {"transB": 1}, 5 * 3 * 4),
    ("GemmFloat8", MICROSOFT, [(3, 5), (3, 4)], [(5, 4)], {"transA": 1}, 5 * 3 * 4),
    ("TransposeMatMul", MICROSOFT, [(2, 3, 5), (2, 3, 4)], [(2, 5, 4)], {"transA": 1}, 2 * 5 * 3 * 4),
    ("FusedMatMul", MICROSOFT, [(5, 2, 3), (2, 3, 4)], [(2, 5, 4)], {"transBatchA": 1}, 2 * 5 * 3 * 4),
    ("MatMulInteger16", MICROSOFT, [(5, 3), (3, 4)], [(5, 4)], {}, 5 * 3 * 4),
    ("MatMulNBits", MICROSOFT, [(2, 5, 64), (8, 2, 16)], [(2, 5, 8)], {"K": 64, "N": 8}, 2 * 5 * 64 * 8),
    ("QGemm", MICROSOFT, [(5, 3), (), (), (3, 4)], [(5, 4)], {}, 5 * 3 * 4),
    ("GroupQueryAttention", MICROSOFT, [(1, 8, 64), (1, 8, 32), (1, 8, 32)], [(1, 8, 64), (1, 2, 8, 16)], HEADS,
     2 * 4 * 8 * 8 * 16),
    ("GroupQueryAttention", MICROSOFT, [(1, 1, 64), (1, 1, 32), (1, 1, 32), (1, 2, 9, 16)],
     [(1, 1, 64), (1, 2, 10, 16)], HEADS, 2 * 4 * 1 * 10 * 16),
    ("GroupQueryAttention", MICROSOFT, [(1, 8, 128), None, None], [(1, 8, 64), None], HEADS, 2 * 4 * 8 * 8 * 16),
    ("MultiHeadAttention", MICROSOFT, [(2, 3, 32), (2, 5, 32), (2, 5, 24)], [(2, 3, 24)], {"num_heads": 4},
     2 * 3 * 5 * (32 + 24)),
    ("MultiHeadAttention", MICROSOFT, [(2, 3, 4, 3, 8)], [(2, 3, 32)], {"num_heads": 4}, 2 * 2 * 4 * 3 * 3 * 8),
    ("Attention", MICROSOFT, [(2, 3, 16), (16, 96)], [(2, 3, 32)], {"num_heads": 4}, 2 * 3 * 16 * 96 + 2 * 3 * 3 * 64),
    ("Attention", "", [(2, 3, 48), (2, 5, 16), (2, 5, 12)], [(2, 3, 36)], {"q_num_heads": 6, "kv_num_heads": 2},
     2 * 3 * 5 * (48 + 36)),
    ("LinearAttention", "", [(2, 3, 32), (2, 3, 16), (2, 3, 12)], [(2, 3, 24), (2, 2, 8, 6)],
     {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": "linear"}, 2 * 3 * 8 * 6 * (2 + 4)),
    ("LinearAttention", MICROSOFT, [(2, 3, 32), (2, 3, 16), (2, 3, 12)], [(2, 3, 24), (2, 2, 8, 6)],
     {"q_num_heads": 4, "kv_num_heads": 2}, 2 * 3 * 8 * 6 * (2 + 4 + 2)),
    ("CausalConvWithState", MICROSOFT, [(2, 6, 5), (6, 1, 3)], [(2, 6, 5), (2, 6, 2)], {}, 2 * 6 * 5 * 3),
]  # fmt: skip


@pytest.mark.parametrize(("op", "domain", "inputs", "outputs", "attributes", "expected"), SHAPES)
def test_formulas(
    op: str, domain: str, inputs: list[tuple[int, ...] | None], outputs: list[tuple[int, ...] | None],
    attributes: dict[str, object], expected: int,
) -> None:  # fmt: skip
    values = [None if s is None else ir.Value(name=f"i{n}", shape=ir.Shape(s)) for n, s in enumerate(inputs)]
    node = ir.node(op, values, attributes, domain=domain, num_outputs=len(outputs))
    for value, shape in zip(node.outputs, outputs, strict=True):
        value.shape = None if shape is None else ir.Shape(shape)
    assert macs_of(node, {}) == expected


def unknown(op: str, domain: str) -> ir.Model:
    """A MatMul, and an operator that nothing is known of."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"], "last", domain=domain)]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in "xy")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.5] * 16)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1), helper.make_opsetid(MICROSOFT, 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return model_io.load_any(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.mark.parametrize(("op", "domain"), [("Mystery", "my.domain"), ("MoE", MICROSOFT), ("DFT", "")])
def test_what_cannot_be_counted_is_named(op: str, domain: str) -> None:
    name = f"{table.key(domain, op)} last"
    model = unknown(op, domain)
    model.graph.node(0).outputs[0].shape = ir.Shape([2, 4])
    assert figures(model).uncounted == (name,)
    assert figures(model).macs == math.prod((2, 4, 4))
    found = onnxprune.inspect(model)
    assert found.uncounted == (name,)
    assert name in found.as_dict()["uncounted"]


def test_another_package_enters_its_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))
    model = unknown("Mystery", "my.domain")
    node = model.graph.node(1)
    assert not operator_of(node).homogeneous
    register(Operator("my.domain::Mystery", pointwise="unary", homogeneous=True, multiply_adds=no_products))
    assert operator_of(node).homogeneous
    assert macs_of(node, {}) == 0
