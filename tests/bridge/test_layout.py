"""Weights of convolutions with their channels last."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import torch

from onnxprune.bridge import channels_last, to_torch, write_back

RNG = np.random.default_rng(0)


def network() -> onnx.ModelProto:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,3,8,8] x) => (float[2,4] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w)
            b = Clip(a, low, high)
            c = Conv<group = 6>(b, d)
            p = ReduceMean<axes = [2, 3], keepdims = 0>(c)
            y = MatMul(p, m)
        }""")
    arrays = {
        "w": RNG.standard_normal((6, 3, 3, 3)),
        "d": RNG.standard_normal((6, 1, 3, 3)),
        "m": RNG.standard_normal((6, 4)),
        "low": np.array(0),
        "high": np.array(6),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    return model


def test_only_the_layout_changes() -> None:
    model = network()
    plain, module = to_torch(model), channels_last(to_torch(model))
    assert module.w.is_contiguous(memory_format=torch.channels_last) and not module.w.is_contiguous()
    assert module.m.is_contiguous()
    x = torch.from_numpy(RNG.standard_normal((2, 3, 8, 8)).astype(np.float32))
    torch.testing.assert_close(module(x), plain(x))


def test_numbers_that_did_not_change_come_back_bit_for_bit() -> None:
    model = network()
    result = write_back(channels_last(to_torch(model)), model)
    for stored in model.graph.initializer:
        value = result.graph.initializers[stored.name].const_value
        assert value is not None and value.numpy().tobytes() == onnx.numpy_helper.to_array(stored).tobytes()


def test_trained_numbers_come_back_in_the_order_of_the_model() -> None:
    model = network()
    module = channels_last(to_torch(model))
    with torch.no_grad():
        module.w += 1
    value = write_back(module, model).graph.initializers["w"].const_value
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), stored["w"] + 1)


def test_a_clip_between_numbers_has_a_gradient_inside_alone() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[5] x) => (float[5] y) <float low = {-1}, float high = {2}> { y = Clip(x, low, high) }""")
    x = torch.tensor([-3.0, -0.5, 1.0, 1.9, 5.0], requires_grad=True)
    y = to_torch(model)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == [-1.0, -0.5, 1.0, torch.tensor(1.9).item(), 2.0]
    assert gradient.tolist() == [0, 1, 1, 1, 0]
