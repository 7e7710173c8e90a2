"""Quantised models, as ONNX Runtime's own quantiser writes them: prunable like the model they came from, and exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grown
import numpy as np
import onnx
import onnx_ir as ir
import oracle
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from onnxprune.structure.analysis import analyse


class _Random(CalibrationDataReader):  # type: ignore[misc]
    """A few random images."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batches: Iterator[dict[str, np.ndarray]] = iter(
            [{"x": rng.standard_normal((2, 4, 6, 6)).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def _network() -> onnx.ModelProto:
    """Convolutions, plain and depthwise, with a residual sum, a concatenation, pools and a classifier."""
    g = grown.Grown(np.random.default_rng(0))
    stem = g.one("Relu", g.one("Conv", "x", g.weight(16, 4, 3, 3), g.weight(16), pads=[1, 1, 1, 1]))
    wide = g.one("Relu", g.one("Conv", stem, g.weight(24, 16, 1, 1), g.weight(24)))
    deep = g.one("Conv", wide, g.weight(24, 1, 3, 3), g.weight(24), pads=[1, 1, 1, 1], group=24)
    back = g.one("Conv", deep, g.weight(16, 24, 1, 1), g.weight(16))
    total = g.one("Add", stem, back)
    both = g.one("Concat", total, g.one("MaxPool", total, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), axis=1)
    pooled = g.one("GlobalAveragePool", g.one("Sigmoid", g.one("Conv", both, g.weight(12, 32, 1, 1), g.weight(12))))
    flat = g.one("Flatten", pooled)
    inner = g.one("Relu", g.one("Gemm", flat, g.weight(20, 12), g.weight(20), transB=1))
    y = g.one("Add", g.one("MatMul", inner, g.weight(20, 3)), g.weight(3))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])
    out = helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(g.nodes, "network", [x], [out], list(g.constants.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def _quantised(folder: Path, how: str) -> Path:
    source, target = folder / "float.onnx", folder / f"{how}.onnx"
    onnx.save(_network(), source)
    if how == "dynamic":
        quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
    else:
        quantize_static(
            source,
            target,
            _Random(),
            quant_format=QuantFormat.QDQ if "qdq" in how else QuantFormat.QOperator,
            per_channel="channels" in how,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8 if "channels" in how else QuantType.QUInt8,
        )
    return target


HOW = ["qdq", "qdq by channels", "operators", "operators by channels", "dynamic"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("exact", [True, False])
def test_quantised_networks_are_pruned_exactly(tmp_path: Path, how: str, exact: bool) -> None:
    path = _quantised(tmp_path, how)
    for seed in range(4):
        verdict = oracle.check(lambda: oracle.normalised(path), 0.5, seed, exact=exact)
        # a sum that lies between two steps of a quantiser may be rounded either way
        assert verdict.difference <= (0.02 if how == "dynamic" else 1e-4), verdict
        assert verdict.removed > 20
        assert verdict.share > (0.9 if how != "dynamic" else 0.0)


def test_a_shared_zero_point_keeps_its_place_in_the_twin(tmp_path: Path) -> None:
    """Zeroing a quantised weight writes its zero point, which is not 0 here."""
    model = oracle.normalised(_quantised(tmp_path, "qdq"))
    structure = analyse(model)
    points = {str(v.name): f.zero_point.const_value.numpy() for v, f in structure.fills.items() if f.zero_point}
    assert any(np.any(p != 0) for p in points.values())


def _int8_graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> ir.Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(a, k) for k, a in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return oracle.normalised(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def _chain(read_zero: int, between: str = "Identity") -> ir.Model:
    """x w -> quantise (zero point 7) -> between -> dequantise (zero point read_zero) -> sum over the units."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node(between, ["q"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z2"], ["d"]),
        helper.make_node("ReduceSum", ["d", "axes"], ["y"]),
    ]
    constants = {
        "w": rng.standard_normal((8, 6)).astype(np.float32),
        "s": np.array(0.1, np.float32),
        "z": np.array(7, np.int8),
        "z2": np.array(read_zero, np.int8),
        "axes": np.array([1]),
    }
    return _int8_graph(nodes, constants)


@pytest.mark.parametrize(
    ("read_zero", "between", "exact"),
    [(7, "Identity", True), (8, "Identity", False), (7, "Relu", False)],
    ids=["same zero point", "another zero point", "an operator that knows none"],
)
def test_zero_goes_through_a_quantiser_only_with_its_zero_point(read_zero: int, between: str, exact: bool) -> None:
    structure = analyse(_chain(read_zero, between))
    w = next(v for v in structure.sources if v.name == "w")
    assert structure.removable(w, 1).all() == exact
    assert structure.removable(w, 1, exact=False).all()


def test_blocks_that_share_a_scale_go_together() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=0, block_size=4),
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("MatMul", ["a", "f"], ["y"]),
    ]
    constants = {
        "v": rng.standard_normal((8, 12)).astype(np.float32),
        "w": rng.integers(0, 16, (12, 5)).astype(np.uint8),
        "s": rng.random((3, 5)).astype(np.float32),
        "z": rng.integers(0, 16, (3, 5)).astype(np.uint8),
    }
    structure = analyse(_int8_graph(nodes, constants))
    w = next(v for v in structure.sources if v.name == "w")
    ids = structure.ids(w, 0)
    assert ids is not None
    terms = [structure.terms.atoms(int(i)) for i in ids]
    assert terms[0] == terms[3] != terms[4] and len(set(terms)) == 3
    verdict = oracle.check(lambda: _int8_graph(nodes, constants), 0.5, 0)
    assert verdict.good and verdict.removed
