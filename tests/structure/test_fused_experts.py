"""Mixtures of experts in one operator: MoE, and QMoE with weights in a few bits."""

from __future__ import annotations

import decoders
import numpy as np
import onnx
import oracle
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import model_io
from onnxprune.graph.packed import unpacked
from onnxprune.graph.size import figures
from onnxprune.pipeline.inspect import inspect
from onnxprune.pipeline.run import prune
from onnxprune.structure.analysis import analyse
from onnxprune.structure.rewrite import remove
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import prunable_weights

from .contrib_cases import quantised_experts
from .twins import node_model, normalised

EXPERTS = 6
BITS = pytest.mark.parametrize("bits", [0, 4, 8])


def _shapes(model: object) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model_io.to_proto(model).graph.initializer}  # type: ignore[arg-type]


def _kinds(structure: Structure) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for group in structure.groups:
        kinds.setdefault(group.kind, []).append(len(group))
    return kinds


@BITS
def test_experts_and_their_inner_width_are_units(bits: int) -> None:
    """Of weights in 4 bits the inner neurons go in blocks of 16, those that share a scale."""
    structure = analyse(normalised(decoders.fused(experts=EXPERTS, bits=bits)))
    kinds = _kinds(structure)
    inner = decoders.INNER // decoders.BLOCK if bits == 4 else decoders.INNER
    width = decoders.WIDTH // decoders.BLOCK if bits == 4 else decoders.WIDTH
    assert kinds["experts"] == [EXPERTS] * 2 and sorted(kinds["neurons"]) == sorted([inner, inner, width])
    stacks = [w for w in prunable_weights(structure) if ".experts." in w.name]
    assert sum(w.size for w in stacks) == 2 * EXPERTS * 3 * decoders.INNER * decoders.WIDTH
    assert all(w.is_packed for w in stacks) == bool(bits)
    free, total = structure.prunable_share(exact=False)
    assert free == total
    experts = next(g for g in structure.groups if g.kind == "experts")
    places = {(str(s.value.name).partition("experts.")[2] or "router", s.axis) for s in experts.sites}
    scales = {("gate_up.scales", 0), ("down.scales", 0)} if bits else set()
    assert places == {("router", 1), *((f"{name}.{what}", 0) for name in ("gate_up", "down")
                                       for what in ("weight", "bias"))} | scales  # fmt: skip
    assert experts.inexact.endswith("it takes the best experts of each token")


@BITS
@pytest.mark.parametrize("exact", [True, False])
def test_removed_is_masked(bits: int, exact: bool) -> None:
    for seed in range(3):
        verdict = oracle.check(lambda: normalised(decoders.fused(experts=EXPERTS, bits=bits)), 0.4, seed, exact=exact)
        assert verdict.removed and verdict.signal > 0.1 and verdict.difference < 1e-4


@BITS
def test_as_many_experts_are_left_as_the_router_takes(bits: int) -> None:
    result = prune(decoders.fused(experts=EXPERTS, bits=bits), sparsity=0.9, structure="channels", kinds=("experts",),
                   allow_inexact=True, round_to="none", latency=False)  # fmt: skip
    shapes = _shapes(result.model)
    for i in range(2):
        prefix = f"layers.{i}.experts"
        assert shapes[f"layers.{i}.router.weight"] == (decoders.WIDTH, decoders.TAKEN)
        assert {s[0] for name, s in shapes.items() if name.startswith(prefix)} == {decoders.TAKEN}


def test_the_work_of_experts_is_that_of_those_taken() -> None:
    """Whole experts save bytes and no work; bits change nothing."""
    tokens, each = 5, 3 * 48 * 64
    for bits in (4, 8):
        inputs = quantised_experts(bits, 16, points=True)
        node = helper.make_node("QMoE", [k if v is not None else "" for k, v in inputs.items()], ["y"], k=2,
                                domain="com.microsoft", activation_type="swiglu", swiglu_fusion=1,
                                expert_weight_bits=bits, block_size=16)  # fmt: skip
        model = normalised(node_model(node, {k: v for k, v in inputs.items() if v is not None}))
        model.graph.node(0).outputs[0].shape = model.graph.initializers["x"].shape
        counted = figures(model)
        assert counted.macs == tokens * 2 * each
        assert counted.parameters == 4 * (each + 128 + 48) + tokens * (48 + 4)


def test_inner_neurons_of_all_experts_go_together() -> None:
    result = prune(decoders.fused(experts=EXPERTS), sparsity=0.3, structure="channels", kinds=("neurons",),
                   round_to="none", latency=False)  # fmt: skip
    shapes = _shapes(result.model)
    for i in range(2):
        up, down = shapes[f"layers.{i}.experts.gate_up.weight"], shapes[f"layers.{i}.experts.down.weight"]
        assert up[0] == down[0] == EXPERTS and up[2] == down[1] == decoders.WIDTH and up[1] == 2 * down[2]
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-4


def test_the_architecture_names_experts_and_their_width() -> None:
    for bits in (0, 4):
        line = inspect(decoders.fused(experts=EXPERTS, bits=bits)).architecture.line
        assert f"{EXPERTS} experts, MLP {decoders.INNER}" in line, line


def test_single_weights_of_float_experts_are_zeroed_and_of_packed_ones_not() -> None:
    result = prune(decoders.fused(experts=EXPERTS), sparsity=0.5, structure="weights", latency=False)
    stacks = {t.name: numpy_helper.to_array(t) for t in model_io.to_proto(result.model).graph.initializer}
    assert 0.3 < (stacks["layers.0.experts.down.weight"] == 0).mean() < 0.7
    proto = decoders.fused(experts=EXPERTS, bits=4)
    result = prune(proto, sparsity=0.5, structure="weights", latency=False)
    before = {t.name: t.SerializeToString() for t in proto.graph.initializer}
    after = {t.name: t.SerializeToString() for t in model_io.to_proto(result.model).graph.initializer}
    changed = {name for name in before if before[name] != after[name]}
    assert changed and not any("experts" in name for name in changed)


# -- forms that no kernel for CPUs takes -----------------------------------------------------------------------------


def _reference(arrays: dict[str, np.ndarray], taken: int, fusion: int) -> np.ndarray:
    """What the operator's definition says: softmax over all experts, the best of them weighted."""
    outputs = np.zeros((len(arrays["x"]), arrays["w2"].shape[1]))
    for row, (x, router) in enumerate(zip(arrays["x"], arrays["router"], strict=True)):
        share = np.exp(router) / np.exp(router).sum()
        for expert in np.argsort(-router)[:taken]:
            first = arrays["w1"][expert] @ x
            gate, up = (first, arrays["w3"][expert] @ x) if fusion == 0 else np.split(first, 2)
            outputs[row] += share[expert] * (arrays["w2"][expert] @ (gate / (1 + np.exp(-gate)) * up))
    return outputs


@pytest.mark.parametrize("fusion", [0, 2])
def test_a_gate_of_its_own_and_one_in_the_other_half(fusion: int) -> None:
    """The kernels for CPUs take neither, so a reference of our own is the judge."""
    rng = np.random.default_rng(fusion)
    shapes = {"x": (5, 8), "router": (5, 6), "w1": (6, 12 if fusion == 0 else 24, 8), "b1": None, "w2": (6, 8, 12),
              "b2": None, "w3": (6, 12, 8) if fusion == 0 else None}  # fmt: skip
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items() if shape}
    node = helper.make_node("MoE", [name if shape else "" for name, shape in shapes.items()], ["y"], k=2,
                            domain="com.microsoft", activation_type="swiglu", swiglu_fusion=fusion)  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, arrays[n].shape) for n in ("x", "router")]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, 8))
    constants = [numpy_helper.from_array(arrays[n], n) for n in arrays if n not in ("x", "router")]
    graph = helper.make_graph([node], "g", ends, [out], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    structure = analyse(normalised(helper.make_model(graph, opset_imports=opsets, ir_version=10)))
    (neurons,) = [g for g in structure.groups if g.kind == "neurons"]
    assert len(neurons) == 12 and not neurons.inexact
    gone = np.array([0, 3, 4, 11])
    removed = np.zeros(structure.terms.count, bool)
    removed[neurons.atoms[gone]] = True
    masked = {name: array.copy() for name, array in arrays.items()}
    masked["w2"][:, :, gone] = 0
    remove(structure, removed)
    for value in structure.model.graph.initializers.values():
        arrays[str(value.name)] = value.const_value.numpy()  # type: ignore[union-attr]
    assert arrays["w2"].shape == (6, 8, 8)
    np.testing.assert_allclose(_reference(arrays, 2, fusion), _reference(masked, 2, fusion), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"quant_type": "fp4"}, "its weights are no integers"), ({"weights_prepacked": 1}, "laid out for one kernel"),
     ({"expert_weight_bits": 3}, "numbers of 3 bits lie across bytes"), ({"block_size": 24}, "of another layout")],
)  # fmt: skip
def test_other_layouts_are_pinned_and_named(change: dict[str, object], reason: str) -> None:
    proto: onnx.ModelProto = decoders.fused(layers=1, experts=EXPERTS, bits=4)
    (node,) = [n for n in proto.graph.node if n.op_type == "QMoE"]
    kept = [a for a in node.attribute if a.name not in change]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in change.items())])
    structure = analyse(normalised(proto))
    assert "experts" not in _kinds(structure)
    weight = structure.model.graph.initializers["layers.0.experts.down.weight"]
    assert reason in structure.why_pinned(weight)[0]


def test_the_numbers_of_a_packed_stack_are_those_of_its_bytes() -> None:
    proto = decoders.fused(layers=1, experts=EXPERTS, bits=4)
    structure = analyse(normalised(proto))
    weight = next(w for w in prunable_weights(structure) if w.name.endswith("down.weight"))
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    q = unpacked(arrays[weight.name], 4).astype(np.float32) - 8
    expected = q * np.repeat(arrays["layers.0.experts.down.scales"], decoders.BLOCK, axis=-1)
    assert weight.shape == (EXPERTS, decoders.WIDTH, decoders.INNER // 2, 2)
    np.testing.assert_allclose(weight.numbers().reshape(expected.shape), expected)
