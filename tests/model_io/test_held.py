"""Large weights of a ModelProto are read once; nothing else changes, and what came in stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_io_models import mlp
from onnx import numpy_helper

from onnxprune import model_io
from onnxprune.errors import ModelError

WIDTH = 2048  # 8 x 2048 floats are 64 KiB, above what stays in the message


def wide(opset: int = 17) -> onnx.ModelProto:
    model = mlp(opset=opset, width=WIDTH)
    weight = model.graph.initializer[0]
    weight.doc_string = "the first weights"
    weight.metadata_props.add(key="from", value="a test")
    return model


@pytest.mark.parametrize("opset", [6, 17])
def test_the_model_is_that_of_the_file(opset: int) -> None:
    """Also where an opset is lifted, by a tool that takes the message apart."""
    proto = wide(opset)
    before = proto.SerializeToString(deterministic=True)
    model, parsed = model_io.load_any(proto), onnx.ModelProto.FromString(before)
    assert proto.SerializeToString(deterministic=True) == before
    for tensor in parsed.graph.initializer:
        held = model.graph.initializers[tensor.name].const_value
        assert held is not None and held.tobytes() == numpy_helper.to_array(tensor).tobytes()
        assert (held.name, held.doc_string or "") == (tensor.name, tensor.doc_string)
        assert held.metadata_props == {entry.key: entry.value for entry in tensor.metadata_props}
    first = model.graph.initializers["w1"].const_value
    assert isinstance(first, ir.Tensor) and first.numpy() is first.numpy()  # it is not read again
    if opset == 17:
        assert model_io.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_change_of_the_message_does_not_reach_the_model() -> None:
    proto = wide()
    model = model_io.load_any(proto)
    expected = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    tensor = model.graph.initializers["w1"].const_value
    assert tensor is not None and np.array_equal(tensor.numpy(), expected)


def test_bytes_that_do_not_fit_are_refused() -> None:
    proto = wide()
    proto.graph.initializer[0].raw_data += b"1234"
    with pytest.raises(ModelError, match="tensor 'w1' needs 65,536 bytes but has 65,540"):
        model_io.load_any(proto)


def test_a_name_that_looks_like_a_place_is_refused_as_external_data() -> None:
    proto = wide()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="onnxprune: held in memory, number 2")
    with pytest.raises(ModelError):
        model_io.load_any(proto)
