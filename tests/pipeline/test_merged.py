"""Decoders that were merged: heads and neurons go in both branches, and the caches of the interface are narrowed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decoders
import merged
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import oracle
import pytest

import onnxprune
from onnxprune import model_io
from onnxprune.errors import VerificationError
from onnxprune.graph.caches import are_alike
from onnxprune.graph.narrowing import free_caches
from onnxprune.pipeline.run import prune
from onnxprune.structure.analysis import analyse
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove

BRANCHES = pytest.mark.parametrize("past", [0, 3], ids=["first tokens", "with a cache"])


def load(*, free: bool = True) -> ir.Model:
    model = oracle.normalised(merged.decoder())
    if free:
        assert free_caches(model) == 4
    return model


def run(model: ir.Model | onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, inputs)


def test_both_branches_share_their_units() -> None:
    structure = analyse(load())
    kinds = sorted((group.kind, len(group)) for group in structure.groups)
    assert kinds == [("head-size", merged.SIZE), ("heads", merged.HEADS), ("neurons", merged.WIDTH),
                     *[("neurons", merged.INNER)] * 2]  # fmt: skip
    free, total = structure.prunable_share(exact=False)
    assert free == total
    kept = analyse(load(free=False))
    assert {group.kind for group in kept.groups} == {"neurons"}  # the interface keeps its heads


@BRANCHES
@pytest.mark.parametrize("exact", [True, False])
def test_removed_is_masked_in_either_branch(past: int, exact: bool) -> None:
    for seed in range(3):
        smaller, twin = load(), load()
        structure, other = analyse(smaller), analyse(twin)
        candidates = np.concatenate([g.atoms for g in structure.groups if not (exact and g.inexact)])
        removed = oracle.choose(structure, candidates, 0.4, seed)
        remove(structure, removed)
        zero_units(other, removed)
        inputs = merged.feeds(past, seed=seed)
        expected, result = run(twin, inputs), run(smaller, inputs)
        scale = max(np.abs(array).max() for array in expected)
        assert max(np.abs(a - b).max() for a, b in zip(expected, result, strict=True)) < 1e-5 * scale
        changed = run(load(), inputs)
        assert max(np.abs(a - b).max() for a, b in zip(expected, changed, strict=True)) > 1e-2 * scale


@pytest.fixture(scope="module")
def pruned() -> onnxprune.Result:
    return prune(merged.decoder(), sparsity=0.3, structure="channels", kinds="heads", interface="narrow",
                 latency=False)  # fmt: skip


@BRANCHES
def test_the_narrow_model_computes_what_the_masked_one_does(pruned: onnxprune.Result, past: int) -> None:
    proto = model_io.to_proto(pruned.model)
    onnx.checker.check_model(proto)
    left = next(t.dims[1] for t in proto.graph.initializer if t.name == "0.q.weight") // merged.SIZE
    assert left < merged.HEADS
    caches = [v for v in (*proto.graph.input, *proto.graph.output) if "." in v.name]
    assert len(caches) == 8 and {v.type.tensor_type.shape.dim[1].dim_value for v in caches} == {left}
    assert not any(node.op_type == "Einsum" for node in proto.graph.node)

    original, weights = merged.decoder(), {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    kept = _kept_heads(original, weights["0.q.weight"])
    for tensor in original.graph.initializer:
        if tensor.name.endswith((".q.weight", ".k.weight", ".v.weight", ".out.weight")):
            array = onnx.numpy_helper.to_array(tensor).copy()
            gone = np.repeat(~kept, merged.SIZE)
            array[(slice(None), gone) if "out" not in tensor.name else gone] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    inputs = merged.feeds(past)
    narrow = {k: v[:, kept] if k.startswith("past") else v for k, v in inputs.items()}
    expected, result = run(original, inputs), run(proto, narrow)
    np.testing.assert_allclose(result[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(result[1], expected[1][:, kept], atol=1e-5)


def _kept_heads(original: onnx.ModelProto, narrow: np.ndarray) -> np.ndarray:
    """Which heads of the first layer are left, by their numbers."""
    wide = next(onnx.numpy_helper.to_array(t) for t in original.graph.initializer if t.name == "0.q.weight")
    heads = [narrow[:, i : i + merged.SIZE] for i in range(0, narrow.shape[1], merged.SIZE)]
    return np.array([
        any(np.array_equal(wide[:, i * merged.SIZE : (i + 1) * merged.SIZE], head) for head in heads)
        for i in range(merged.HEADS)
    ])  # fmt: skip


def test_the_proof_covers_both_branches(pruned: onnxprune.Result) -> None:
    assert {name: set(ran) for name, ran in pruned.reach[-1]["branches"].items()} == {"optimum::if": {"then", "else"}}


def test_neurons_go_without_touching_the_interface() -> None:
    result = prune(merged.decoder(), sparsity=0.3, structure="channels", kinds="neurons", latency=False)
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-4
    proto = model_io.to_proto(result.model)
    assert [v.type for v in proto.graph.output] == [v.type for v in merged.decoder().graph.output]
    assert all(np.isfinite(run(proto, merged.feeds(past))[0]).all() for past in (0, 3))


def test_the_architecture_is_that_of_one_branch() -> None:
    inspection = onnxprune.inspect(merged.decoder())
    assert inspection.line.startswith("decoder, 2 layers, 4 heads, head size 8, MLP 48, "), inspection.line
    assert inspection.caches is not None
    assert inspection.caches.units == {"heads": merged.HEADS, "head size": merged.SIZE}


@pytest.fixture(scope="module")
def shallow() -> onnxprune.Result:
    return prune(merged.decoder(3), sparsity=0.4, structure="layers", interface="narrow", latency=False)


def without_layer(proto: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """The decoder with the last products of both halves of a layer zeroed by hand."""
    for tensor in proto.graph.initializer:
        if tensor.name in (f"{layer}.out.weight", f"{layer}.down.weight"):
            zeros = np.zeros_like(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    return proto


@BRANCHES
def test_a_layer_goes_in_both_branches_with_its_caches(shallow: onnxprune.Result, past: int) -> None:
    proto = model_io.to_proto(shallow.model)
    onnx.checker.check_model(proto)
    left = sorted({t.name[0] for t in proto.graph.initializer if t.name.endswith(".out.weight")})
    (gone,) = {"0", "1", "2"} - set(left)
    (choice,) = (node for node in proto.graph.node if node.op_type == "If")
    caches = [f"present.{i}.{kind}" for i in (0, 1) for kind in ("key", "value")]
    assert [v.name for v in proto.graph.output] == list(choice.output) == ["logits", *caches]
    for branch in (a.g for a in choice.attribute):
        assert not any(gone == name[0] for node in branch.node for name in node.input if name)
    wide = merged.feeds(past, heads=(merged.HEADS,) * 3)
    narrow = {name: array for name, array in wide.items() if "past" not in name}
    for new, old in enumerate(left):
        narrow |= {f"past_key_values.{new}.{k}": wide[f"past_key_values.{old}.{k}"] for k in ("key", "value")}
    expected, result = run(without_layer(merged.decoder(3), gone), wide), run(proto, narrow)
    np.testing.assert_allclose(result[0], expected[0], atol=1e-4)
    for new, old in enumerate(map(int, left)):
        np.testing.assert_allclose(result[1 + 2 * new], expected[1 + 2 * old], atol=1e-5)


@pytest.mark.parametrize("make", [merged.decoder, decoders.fused], ids=["merged", "fused"])
def test_layers_that_went_with_their_caches_are_verified_later(make: Callable[..., Any], tmp_path: Path) -> None:
    source, target, record = tmp_path / "m.onnx", tmp_path / "p.onnx", tmp_path / "r.json"
    onnx.save(make(4), source)
    result = prune(str(source), sparsity=0.6, structure="layers", interface="narrow", latency=False)
    assert len(result.blocks) == 4
    onnxprune.save(result, target, record=record)
    found = onnxprune.verify(source, target, record)
    assert found.proved and found.removed_vs_masked is not None and found.removed_vs_masked < 1e-4

    told = json.loads(record.read_text())
    went = {int(re.search(r"\d+", name).group()) for name in result.blocks}  # type: ignore[union-attr]
    gone, stayed = min(went), min({0, 1, 2, 3} - went)
    told["blocks"] = [re.sub(rf"\b{gone}\b", str(stayed), name, count=1) for name in result.blocks]
    record.write_text(json.dumps(told))
    with pytest.raises(VerificationError, match="differs from"):
        onnxprune.verify(source, target, record)


def test_halves_of_layers_go_in_both_branches() -> None:
    result = prune(merged.decoder(3), sparsity=0.2, structure="blocks", latency=False)
    assert result.blocks and all(name.endswith(".fed") for name in result.blocks)  # attentions write their caches
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-5
    proto = model_io.to_proto(result.model)
    for past in (0, 3):
        assert np.isfinite(run(proto, merged.feeds(past, heads=(merged.HEADS,) * 3))[0]).all()


@pytest.mark.parametrize("criterion", ["block-influence", "block-output"])
@BRANCHES
def test_layers_are_ranked_in_the_branch_that_the_samples_take(criterion: str, past: int) -> None:
    samples = merged.feeds(past, heads=(merged.HEADS,) * 3)
    weak = without_layer(merged.decoder(3), "1")  # its layer adds next to nothing
    result = prune(weak, sparsity=0.4, structure="layers", interface="narrow", criterion=criterion, recover=["no"],
                   calibration=samples, latency=False)  # fmt: skip
    assert result.blocks == ("1.attended", "1.fed")


def reading(proto: onnx.ModelProto, branch: int, renamed: dict[str, str]) -> onnx.ModelProto:
    """The decoder with copies of some weights under other names, which one of its branches reads."""
    choice = next(node for node in proto.graph.node if node.op_type == "If")
    for node in choice.attribute[branch].g.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for tensor in [t for t in proto.graph.initializer if t.name in renamed]:
        proto.graph.initializer.add().CopyFrom(tensor)
        proto.graph.initializer[-1].name = renamed[tensor.name]
    return proto


def test_a_layer_that_one_branch_alone_has_stays() -> None:
    kinds = [f"1.{kind}.weight" for kind in ("q", "k", "v", "out", "up", "down")]
    proto = reading(merged.decoder(), 0, {name: f"another.{name}" for name in kinds})
    result = prune(proto, structure="layers", sparsity=0.5, interface="narrow", latency=False)
    assert result.blocks == ("0.attended", "0.fed")


def test_branches_may_read_weights_and_hand_out_caches_of_their_own() -> None:
    """As the branch for the first tokens does with what it makes of an encoder's values."""
    proto = reading(merged.decoder(), 1, {"1.v.weight": "first.v.weight", "0.v.weight": "0.first.v.weight"})
    choice = next(node for node in proto.graph.node if node.op_type == "If")
    branch = choice.attribute[1].g
    (maker,) = (node for node in branch.node if "present.1.key" in node.output)
    for node in branch.node:
        node.input[:] = ["kept" if name == "present.1.key" else name for name in node.input]
    maker.output[0] = "kept"
    branch.node.append(onnx.helper.make_node("Identity", ["kept"], ["present.1.key"], name="hand out"))
    result = prune(proto, structure="layers", sparsity=0.9, interface="narrow", latency=False, exclude=["0.*"])
    assert result.blocks == ("1.attended", "1.fed")
    left = model_io.to_proto(result.model)
    assert not {"1.v.weight", "first.v.weight"} & {t.name for t in left.graph.initializer}
    for past in (0, 3):
        narrow = {k: v for k, v in merged.feeds(past).items() if ".1." not in k}
        expected = run(without_layer(merged.decoder(), "1"), merged.feeds(past))
        np.testing.assert_allclose(run(left, narrow)[0], expected[0], atol=1e-4)


@pytest.mark.parametrize(("one", "other", "alike"), [
    ("present.0.key", "present.1.key", True), ("present.0.decoder.key", "present.0.encoder.key", False),
    ("past_key_values.10.value", "past_key_values.2.value", True), ("cache_a", "cache_b", False),
])  # fmt: skip
def test_caches_of_an_encoder_do_not_stand_in_for_those_of_tokens(one: str, other: str, alike: bool) -> None:
    assert are_alike(ir.Value(name=one), ir.Value(name=other)) == alike
    shape = ir.Shape(["batch", 2, "past", 8])
    assert are_alike(ir.Value(name=one, shape=shape), ir.Value(name=other, shape=shape.copy()))
