"""Unpacking recognises what pack wrote, whatever happened to the file since, and refuses what is damaged."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.packing import is_packed, pack, unpack

from .builders import initializers, network


def _packed(mode: str = "gap8") -> onnx.ModelProto:
    return ir.to_proto(pack(ir.from_proto(network(0.9)), mode=mode)[0])  # type: ignore[arg-type]


def _tensor(model: onnx.ModelProto, ending: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name.endswith(ending))


def test_is_packed() -> None:
    assert is_packed(ir.from_proto(_packed()))
    assert not is_packed(ir.from_proto(network(0.9)))
    assert not is_packed(unpack(ir.from_proto(_packed())))


def test_a_plain_model_comes_back_as_it_was() -> None:
    model = ir.from_proto(network(0.9))
    assert ir.to_proto(unpack(model)).SerializeToString() == ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize("mode", ["gap8", "gap4", "bitmask", "smallest"])
def test_no_helper_is_left_behind(mode: str) -> None:
    plain = unpack(ir.from_proto(_packed(mode)))
    assert set(plain.graph.initializers) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}
    assert [node.op_type for node in plain.graph] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_without_value_info_and_doc_strings_it_still_unpacks() -> None:
    model = _packed()
    del model.graph.value_info[:]
    assert initializers(unpack(ir.from_proto(model))) == initializers(ir.from_proto(network(0.9)))


def test_positions_out_of_range() -> None:
    model = _packed()
    gaps = _tensor(model, "0.gaps")
    gaps.CopyFrom(numpy_helper.from_array(np.full(gaps.dims[0], 255, np.uint8), gaps.name))
    with pytest.raises(ModelError, match=r"'conv\.weight' is damaged.*out of range"):
        unpack(ir.from_proto(model))


def test_fewer_values_than_positions() -> None:
    model = _packed()
    values = _tensor(model, "0.values")
    values.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(values)[:-1], values.name))
    with pytest.raises(ModelError, match="positions for"):
        unpack(ir.from_proto(model))


def test_another_shape_than_declared() -> None:
    model = _packed()
    shape = next(t for t in model.graph.initializer if list(numpy_helper.to_array(t).reshape(-1)) == [64, 16, 3, 3])
    shape.CopyFrom(numpy_helper.from_array(np.array([16, 64, 3, 3]), shape.name))
    with pytest.raises(ModelError, match=r"decodes to shape \(16, 64, 3, 3\)"):
        unpack(ir.from_proto(model))


def test_a_huge_shape_is_refused_before_it_is_made() -> None:
    model = _packed()
    size = next(t for t in model.graph.initializer if list(numpy_helper.to_array(t).reshape(-1)) == [64 * 16 * 9])
    size.CopyFrom(numpy_helper.from_array(np.array([2**40]), size.name))
    with pytest.raises(ModelError, match="makes a tensor of shape"):
        unpack(ir.from_proto(model))


def test_a_foreign_operator_in_the_decoder() -> None:
    model = _packed()
    next(n for n in model.graph.node if n.op_type == "CumSum").op_type = "Einsum"
    with pytest.raises(ModelError, match="operator 'Einsum'"):
        unpack(ir.from_proto(model))


def test_a_missing_attribute() -> None:
    model = _packed()
    node = next(n for n in model.graph.node if n.op_type == "Cast")
    del node.attribute[:]
    with pytest.raises(ModelError, match="is damaged"):
        unpack(ir.from_proto(model))
