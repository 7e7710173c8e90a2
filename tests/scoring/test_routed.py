"""Criteria and recovery see of each expert the tokens that a router gives it, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import decoders
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from structure.graphs import load
from structure.test_picked_matrices import PICKED, weights

from onnxprune import model_io
from onnxprune.graph.linear import linear_layers, tensor_of
from onnxprune.graph.spelled_experts import with_experts_spelled
from onnxprune.pipeline.run import prune
from onnxprune.recovery.run import recover
from onnxprune.runtime.session import make_session
from onnxprune.scoring import Evidence, find_criterion, prunable_weights
from onnxprune.structure.analysis import analyse
from onnxprune.structure.weights import Weight

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
EXPERTS, WIDTH, INNER, TOKENS = 4, 8, 12, 40
X = RNG.standard_normal((TOKENS, WIDTH)).astype(np.float32)

SIDE_BY_SIDE = """agraph (float[T,8] x) => (float[T,8] y) {
    s = MatMul(x, router) p = Softmax(s) g = Transpose(p) r = Greater(g, half) f = Cast<to=1>(r) m = Unsqueeze(f, last)
    a = Unsqueeze(x, axis0) b = Mul(a, m) h = MatMul(b, up) i = Relu(h) o = MatMul(i, down) y = ReduceSum(o, axis0) }"""


def picked() -> ir.Model:
    return load(PICKED["a Gather by tokens"], 17, **weights(PICKED["a Gather by tokens"]))


def side_by_side() -> ir.Model:
    """All experts read all tokens; those with a share of less than .25 are blanked."""
    return load(SIDE_BY_SIDE, 17, router=(8, 4), up=(4, 8, 12), down=(4, 12, 8), half=np.array(0.25, np.float32),
                last=np.array([-1]), axis0=np.array([0]))  # fmt: skip


def one_operator(taken: int = 2, seed: int = 0) -> ir.Model:
    """ReLU experts of the operator MoE: its stacks are [experts, outputs, inputs]."""
    rng = np.random.default_rng(seed)
    shapes = {"up": (EXPERTS, INNER, WIDTH), "up_bias": (EXPERTS, INNER), "down": (EXPERTS, WIDTH, INNER),
              "down_bias": (EXPERTS, WIDTH), "router": (WIDTH, EXPERTS)}  # fmt: skip
    constants = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [helper.make_node("MatMul", ["x", "router"], ["s"]),
             helper.make_node("MoE", ["x", "s", *list(shapes)[:4]], ["y"], domain="com.microsoft", k=taken,
                              activation_type="relu", normalize_routing_weights=1)]  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", WIDTH]) for name in "xy")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return model_io.load_any(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def number(model: ir.Model, name: str) -> Array:
    return tensor_of(model.graph.initializers[name]).numpy()


def routing(model: ir.Model, taken: int) -> npt.NDArray[np.bool_]:
    """Which token goes to which expert, by hand: [experts, tokens]."""
    scores = X @ number(model, "router")
    if taken:
        return np.stack([(np.argsort(-scores, axis=1)[:, :taken] == e).any(axis=1) for e in range(EXPERTS)])
    return (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True) > 0.25).T


def expected(model: ir.Model, taken: int, *, turned: bool) -> dict[str, Array]:
    """What each expert reads, by hand and expert by expert: {weight: [experts, tokens, K]}, zeros for other tokens."""
    goes, up = routing(model, taken), number(model, "up")
    read = [np.where(goes[e][:, None], X, 0) for e in range(EXPERTS)]
    bias = number(model, "up_bias") if turned else np.zeros((EXPERTS, INNER), np.float32)
    inner = [np.maximum(read[e] @ (up[e].T if turned else up[e]) + bias[e], 0) for e in range(EXPERTS)]
    return {"up": np.stack(read), "down": np.stack([np.where(goes[e][:, None], inner[e], 0) for e in range(EXPERTS)])}


FORMS: dict[str, tuple[Callable[[], ir.Model], int]] = {
    "picked": (picked, 1), "side by side": (side_by_side, 0), "one operator": (one_operator, 2),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_wanda_multiplies_the_weights_of_an_expert_with_what_its_tokens_bring(form: str) -> None:
    make, taken = FORMS[form]
    model, turned = make(), form == "one operator"
    structure = analyse(model)
    criterion = find_criterion("wanda").on(Evidence(structure, {"x": X}, batch=16))
    by_hand = expected(model, taken, turned=turned)
    found: dict[str, Weight] = {w.name: w for w in prunable_weights(structure)}
    for name, read in by_hand.items():
        power = np.square(read.astype(np.float64)).sum(axis=1)  # over tokens, [experts, K]
        power = power[:, None, :] if turned else power[:, :, None]
        saliency = criterion.saliency(found[name], RNG)
        numbers = np.square(number(model, name).astype(np.float64)) * power
        ratio = saliency / np.where(numbers > 0, numbers, 1)
        rows = TOKENS * (EXPERTS if form != "picked" else 1)  # what is side by side has rows for each expert
        np.testing.assert_allclose(ratio[numbers > 0], 1 / rows, rtol=1e-4)
        assert (saliency[numbers == 0] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_gram_matrices_are_those_of_the_tokens_of_each_expert(form: str) -> None:
    make, taken = FORMS[form]
    model = make()
    evidence = Evidence(analyse(model), {"x": X}, batch=16)
    held = evidence.held
    for name, read in expected(model, taken, turned=form == "one operator").items():
        read = read[:, held:].astype(np.float64)
        np.testing.assert_allclose(evidence.moments(name).aa, read.transpose(0, 2, 1) @ read, rtol=1e-3, atol=1e-4)


def test_an_expert_that_gets_no_token_does_not_stop_a_criterion() -> None:
    model = picked()
    router = number(model, "router").copy()
    router[:, 3] = 0
    router[0, 3] = -1e6
    model.graph.initializers["router"].const_value = ir.Tensor(router, name="router")
    structure = analyse(model)
    evidence = Evidence(structure, {"x": np.abs(X)}, batch=16)
    up = next(w for w in prunable_weights(structure) if w.name == "up")
    assert (find_criterion("wanda").on(evidence).saliency(up, RNG)[3] == 0).all()
    assert np.isfinite(find_criterion("obc").on(evidence).saliency(up, RNG)).all()


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("relu", {}), ("gelu", {}), ("silu", {"normalize_routing_weights": 1}), ("identity", {}),
     ("swiglu", {"swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 2.0})],
)  # fmt: skip
def test_experts_that_are_spelled_out_give_what_the_operator_gives(kind: str, attributes: dict[str, Any]) -> None:
    model = one_operator()
    (node,) = [n for n in model.graph if n.op_type == "MoE"]
    node.attributes.pop("normalize_routing_weights")
    for name, value in {"activation_type": kind, **attributes}.items():
        node.attributes[name] = ir.Attr(name, ir.AttributeType.INT if isinstance(value, int) else
                                        ir.AttributeType.FLOAT if isinstance(value, float) else
                                        ir.AttributeType.STRING, value)  # fmt: skip
    if kind == "swiglu":
        for name in ("up", "up_bias"):
            array = np.concatenate([number(model, name)] * 2, axis=1)
            value = model.graph.initializers[name]
            value.const_value, value.shape = ir.Tensor(array, name=name), ir.Shape(array.shape)
    spelled = with_experts_spelled(model)
    assert spelled is not None and not [n for n in spelled.graph if n.op_type == "MoE"]
    ours, theirs = (make_session(m).run(None, {"x": X})[0] for m in (spelled, model))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["least-squares", "sparsegpt", "alps"])
def test_recovery_fits_each_expert_to_its_tokens(form: str, method: str) -> None:
    """Half of the weights of every expert are zero; a fit brings its outputs back towards the dense ones."""
    dense, pruned = FORMS[form][0](), FORMS[form][0]()
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2048, WIDTH)).astype(np.float32) @ rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    for name in ("up", "down"):
        array = number(pruned, name).copy()
        array[np.abs(array) < np.median(np.abs(array))] = 0
        pruned.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    zeros = {name: (number(pruned, name) == 0).sum() for name in ("up", "down")}
    target = make_session(dense).run(None, {"x": x})[0]

    def error() -> float:
        return float(np.square(make_session(pruned).run(None, {"x": x})[0] - target).sum())

    before = error()
    done = recover(dense, pruned, {}, {"x": x}, methods=(method,))
    assert {step.layer for step in done.steps if step.applied} >= {"up", "down"}
    assert not {"up", "down"} & set(done.skipped)
    assert {name: (number(pruned, name) == 0).sum() for name in zeros} == zeros
    assert error() < 0.8 * before


def test_rows_count_where_both_networks_send_them_to_the_same_expert() -> None:
    """Where the last expert is taken, not the first, no token has the expert that it had: nothing can be learnt."""
    text = PICKED["a Gather by tokens"]
    turned = text.replace("s = MatMul(x, router)", "n = MatMul(x, router) s = Neg(n)")
    dense, pruned = picked(), load(turned, 17, **weights(text))
    array = number(pruned, "up").copy()
    array[:, ::2] = 0
    pruned.graph.initializers["up"].const_value = ir.Tensor(array, name="up")
    rng = np.random.default_rng(1)
    recover(dense, pruned, {}, {"x": rng.standard_normal((512, WIDTH)).astype(np.float32)})
    np.testing.assert_allclose(number(pruned, "up"), np.where(array != 0, number(dense, "up"), 0), atol=1e-5)


def test_wanda_by_routed_tokens_leaves_less_error_than_magnitude() -> None:
    """A decoder with six experts for each token's two, channels of very different size: 50 % of the weights go."""
    proto = decoders.fused(experts=6)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("norm.scale") or ".norm" in tensor.name:
            array = numpy_helper.to_array(tensor).copy()
            array *= np.exp(np.random.default_rng(3).standard_normal(array.shape)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    rng = np.random.default_rng(2)

    def data(count: int) -> dict[str, Array]:
        caches = {f"past_key_values.{i}.{kind}": np.zeros((count, decoders.KV_HEADS, 0, decoders.SIZE), np.float32)
                  for i in range(2) for kind in ("key", "value")}  # fmt: skip
        tokens = rng.integers(0, decoders.VOCABULARY, (count, 16))
        return {"input_ids": tokens, "attention_mask": np.ones((count, 16), np.int64), **caches}

    calibration, test = data(64), data(32)
    dense = ort.InferenceSession(proto.SerializeToString()).run(["logits"], test)[0]
    errors = {}
    for criterion in ("magnitude", "wanda"):
        result = prune(proto, structure="weights", sparsity=0.5, criterion=criterion, allocation="uniform",
                       recover=("no",), calibration=calibration, latency=False, verification=False)  # fmt: skip
        proto_after = model_io.to_proto(result.model)
        experts = [t for t in proto_after.graph.initializer if ".experts." in t.name and t.name.endswith("weight")]
        assert all((numpy_helper.to_array(t) == 0).mean() > 0.49 for t in experts)
        after = ort.InferenceSession(proto_after.SerializeToString()).run(["logits"], test)[0]
        errors[criterion] = float(np.square(after - dense).sum() / np.square(dense).sum())
    assert errors["wanda"] < 0.9 * errors["magnitude"], errors


def test_stacks_of_a_few_bits_are_left_and_named() -> None:
    structure = analyse(model_io.load_any(decoders.fused(layers=1, experts=6, bits=4)))
    criterion = find_criterion("wanda").on(Evidence(structure, {"x": X}))
    stacks = [w for w in prunable_weights(structure) if ".experts." in w.name]
    assert stacks and all("in a few bits" in criterion.obstacle(w) for w in stacks)
    assert not [x for x in linear_layers(structure.model, stacks=True)[0] if ".experts." in x.name]


def test_stacks_in_an_einsum_are_left_and_named() -> None:
    text = 'agraph (float[T,8] x) => (float[4,T,12] y) { y = Einsum<equation="tw,ewi->eti">(x, up) }'
    layers, refused = linear_layers(load(text, 17, up=(4, 8, 12)), stacks=True)
    assert not layers and refused == {"y": "Einsum is not reconstructed"}
