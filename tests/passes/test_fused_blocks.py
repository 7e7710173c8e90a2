"""Residual blocks whose sums ONNX Runtime has fused with the norms behind them: removed == masked, none is hidden."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.passes import MaskBlocks, RemoveBlocks, Tidy
from onnxprune.pipeline.prepare import prepare
from onnxprune.structure.blocks import residual_blocks

WIDTH = 8


def transformer(*, full: bool, sums: bool, swapped: bool, blocks: int = 3, fused: bool = True) -> ir.Model:
    """Feed-forward blocks in a row.

    Args:
        full: LayerNormalization with a shift, and a bias fused into the sum; else the simplified norm.
        sums: The norm stands before the block and the trunk is the sum (pre-norm); else behind it (post-norm).
        swapped: The block is the first operand.
        blocks: How many.
        fused: Whether the sums are fused with the norms.
    """
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def drawn(name: str, *shape: int, around: float = 0.0) -> str:
        weights[name] = (around + rng.standard_normal(shape) * 0.4).astype(np.float32)
        return name

    norm = "LayerNormalization" if full else "SimplifiedLayerNormalization"
    affine = lambda i: [drawn(f"g{i}", WIDTH, around=1.0), *([drawn(f"s{i}", WIDTH)] if full else [])]  # noqa: E731
    nodes, trunk, read = [], "x", "x"
    if sums:
        nodes.append(helper.make_node(norm, ["x", *affine("x")], ["n"], axis=-1, epsilon=1e-5))
        read = "n"
    for i in range(blocks):
        up, down = drawn(f"up{i}", WIDTH, 16), drawn(f"down{i}", 16, WIDTH)
        nodes += [
            helper.make_node("MatMul", [read, up], [f"u{i}"]),
            helper.make_node("Relu", [f"u{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", down], [f"d{i}"]),
        ]
        operands = [f"d{i}", trunk] if swapped else [trunk, f"d{i}"]
        bias = [drawn(f"b{i}", WIDTH)] if full else []
        if fused:
            outputs = [f"n{i}", "", "", f"t{i}"] if sums else [f"n{i}"]
            nodes.append(
                helper.make_node(f"Skip{norm}", [*operands, *affine(i), *bias], outputs, domain="com.microsoft",
                                 epsilon=1e-5)
            )  # fmt: skip
        else:
            branch = f"d{i}"
            if bias:
                nodes.append(helper.make_node("Add", [branch, *bias], [f"e{i}"]))
                branch = f"e{i}"
            nodes.append(helper.make_node("Add", [trunk, branch], [f"t{i}"]))
            nodes.append(helper.make_node(norm, [f"t{i}", *affine(i)], [f"n{i}"], axis=-1, epsilon=1e-5))
        trunk, read = (f"t{i}", f"n{i}") if sums else (f"n{i}", f"n{i}")
    nodes.append(helper.make_node("MatMul", [read, drawn("head", WIDTH, 5)], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", 5])
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "transformer", [x], [y], tensors)
    return model_io.load_any(helper.make_model(graph, opset_imports=imports, ir_version=8))


FEEDS = {"x": np.random.default_rng(1).standard_normal((2, 4, WIDTH)).astype(np.float32)}


def changed(model: ir.Model, names: Collection[str], change: type[RemoveBlocks] | type[MaskBlocks]) -> ir.Model:
    structure = prepare(model.clone())
    change([b for b in residual_blocks(structure) if b.name in names])(structure.model)
    Tidy()(structure.model)
    return structure.model


def outputs(model: ir.Model) -> np.ndarray:
    return runtime.run(runtime.make_session(model, optimize="off"), FEEDS)["y"]


CASES = [(full, sums, swapped) for full in (False, True) for sums in (False, True) for swapped in (False, True)]


@pytest.mark.parametrize(("full", "sums", "swapped"), CASES)
def test_removed_is_masked(full: bool, sums: bool, swapped: bool) -> None:
    model = transformer(full=full, sums=sums, swapped=swapped)
    names = [b.name for b in residual_blocks(prepare(model.clone()))]
    assert names == (["t0", "t1", "t2"] if sums else ["n0", "n1", "n2"])
    for chosen in (subset for count in (1, 2, 3) for subset in combinations(names, count)):
        removed, masked = changed(model, chosen, RemoveBlocks), changed(model, chosen, MaskBlocks)
        gone = {f"{part}{name[1]}" for name in chosen for part in ("up", "down", *(["b"] if full else []))}
        assert not gone & set(removed.graph.initializers)
        np.testing.assert_allclose(outputs(removed), outputs(masked), atol=1e-5)


@pytest.mark.parametrize(("full", "sums", "swapped"), CASES)
def test_the_fused_network_loses_what_the_plain_one_loses(full: bool, sums: bool, swapped: bool) -> None:
    found = []
    for fused in (True, False):
        model = transformer(full=full, sums=sums, swapped=swapped, fused=fused)
        names = [b.name for b in residual_blocks(prepare(model.clone()))]
        if not (fused or sums):  # without the fusion a post-norm block ends at its sum
            names = [name.replace("t", "n") for name in names]
        assert len(names) == 3
        chosen = names[1] if fused or sums else "t1"
        found.append(outputs(changed(model, [chosen], RemoveBlocks)))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_a_norm_that_only_the_block_read_goes_too() -> None:
    removed = changed(transformer(full=True, sums=True, swapped=False), ["t1"], RemoveBlocks)
    assert [node.op_type for node in removed.graph if node.op_type in ("Add", "LayerNormalization")] == [
        "LayerNormalization", "Add", "Add", "LayerNormalization",
    ]  # fmt: skip
    assert "g0" not in removed.graph.initializers and "s0" not in removed.graph.initializers


@pytest.mark.parametrize("criterion", ["magnitude", "block-influence", "block-output"])
def test_a_whole_run(criterion: str) -> None:
    model = transformer(full=True, sums=True, swapped=False, blocks=4)
    data = {"x": np.random.default_rng(2).standard_normal((16, 4, WIDTH)).astype(np.float32)}
    result = onnxprune.prune(
        model, structure="blocks", sparsity=0.4, criterion=criterion, calibration=data, recover="no", latency=False
    )
    assert result.verdict is not None and result.verdict.removed_vs_masked is not None
    assert result.verdict.removed_vs_masked < 1e-4
    assert sum(node.op_type == "MatMul" for node in result.model.graph) <= 7


def test_statistics_that_are_read_pin_the_sum() -> None:
    model = transformer(full=True, sums=True, swapped=False)
    proto = model_io.to_proto(model)
    node = next(n for n in proto.graph.node if n.op_type == "SkipLayerNormalization")
    node.output[1] = "mean"
    proto.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))
    names = [
        b.name
        for b in residual_blocks(prepare(model_io.load_any(onnx.ModelProto.FromString(proto.SerializeToString()))))
    ]
    assert names == ["t1", "t2"]
