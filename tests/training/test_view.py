"""The training view of a graph, and what each of its initializers is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from training_models import blobs, convnet, mlp, weights

from onnxprune.bridge import to_torch
from onnxprune.errors import RecipeError
from onnxprune.training.layers import find_layers, matching
from onnxprune.training.losses import finish
from onnxprune.training.reinit import reinitialise
from onnxprune.training.view import dropout_ratios, fc_after_layers, training_view

X = torch.from_numpy(blobs(16)[0])


@pytest.mark.parametrize(("softmax", "kind"), [("Softmax", "softmax"), ("LogSoftmax", "log-softmax"), (None, "values")])
@pytest.mark.parametrize("opset", [11, 17])
def test_the_view_gives_logits_and_finish_gives_the_files_outputs(softmax: str | None, kind: str, opset: int) -> None:
    model = mlp(softmax=softmax, opset=opset)
    view, heads = training_view(model)
    assert [(head.name, head.kind) for head in heads] == [("scores", kind)]
    logits = to_torch(view)(X)
    assert torch.allclose(logits, to_torch(mlp(opset=opset))(X))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (wanted,) = session.run(None, {"x": X.numpy()})
    assert np.allclose(finish(heads, (logits,))[0].detach().numpy(), wanted, atol=1e-5)


def test_the_view_leaves_the_model_as_it_is() -> None:
    model = mlp(softmax="Softmax")
    before = ir.to_proto(model).SerializeToString()
    training_view(model, {"fc2.weight": 0.5})
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("opset", [11, 17])
def test_dropout_acts_in_training_only(opset: int) -> None:
    model = mlp(opset=opset)
    module = to_torch(training_view(model, {"fc2.weight": 0.5})[0])
    assert torch.allclose(module.eval()(X), to_torch(model)(X))
    module.train()
    assert not torch.allclose(module(X), module(X))
    assert set(module.onnx_names.values()) >= {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


def test_dropout_stands_before_layers_that_read_layers_not_the_input() -> None:
    assert list(fc_after_layers(mlp())) == ["fc2.weight"]
    assert list(fc_after_layers(convnet())) == ["fc.weight"]


def test_dropout_shrinks_with_the_root_of_the_connections() -> None:
    model = mlp()
    mask = np.zeros((3, 16), bool)
    mask[:, :4] = True  # a quarter of the connections
    assert dropout_ratios(model, 0.5, {"fc2.weight": mask}, model) == pytest.approx({"fc2.weight": 0.25})
    assert dropout_ratios(model, 0.0, {}, model) == {}


def test_layers_are_told_by_their_consumers() -> None:
    found = {name: (layer.kind, layer.role, layer.fan_in) for name, layer in find_layers(convnet()).items()}
    assert found == {
        "conv.weight": ("conv", "weight", 9),
        "bn.scale": ("norm", "scale", 0),
        "bn.bias": ("norm", "bias", 0),
        "bn.mean": ("norm", "mean", 0),
        "bn.var": ("norm", "variance", 0),
        "fc.weight": ("fc", "weight", 4),
        "fc.bias": ("fc", "bias", 0),
    }
    assert find_layers(mlp())["fc1.weight"].fan_in == 8  # transB


def test_a_weight_is_seen_through_a_transpose() -> None:
    model = convnet()
    product = next(node for node in model.graph if node.op_type == "MatMul")
    weight = model.graph.initializers["fc.weight"]
    weight.const_value = ir.tensor(np.ascontiguousarray(weight.const_value.numpy().T), name="fc.weight")
    weight.shape = ir.Shape([3, 4])
    transpose = ir.node("Transpose", [weight], {"perm": [1, 0]})
    product.prepend(transpose)
    product.replace_input_with(1, transpose.outputs[0])
    layer = find_layers(model)["fc.weight"]
    assert (layer.kind, layer.role, layer.fan_in) == ("fc", "weight", 4)


def test_patterns_name_kinds_initializers_and_nodes() -> None:
    layers = find_layers(convnet())
    assert matching(["conv"], layers) == {"conv.weight"}
    assert matching(["fc"], layers) == {"fc.weight", "fc.bias"}
    assert matching(["bn.*"], layers) == {"bn.scale", "bn.bias", "bn.mean", "bn.var"}
    assert matching([], layers) == set()
    with pytest.raises(RecipeError, match="'fc9\\*' matches no weight"):
        matching(["fc9*"], layers)


def test_new_weights_suit_their_layer_and_respect_the_mask() -> None:
    model = mlp()
    mask = np.arange(3 * 16).reshape(3, 16) % 2 == 0
    fresh = weights(reinitialise(model, {"fc2.weight": mask}, seed=1))
    old = weights(model)
    assert not np.any(fresh["fc1.weight"] == old["fc1.weight"])
    assert fresh["fc1.weight"].std() == pytest.approx((2 / 8) ** 0.5, rel=0.2)
    assert np.all(fresh["fc2.weight"][~mask] == 0)
    assert fresh["fc2.weight"][mask].std() == pytest.approx((2 / 8) ** 0.5, rel=0.4)  # 8 of 16 inputs are left
    assert np.all(fresh["fc1.bias"] == 0)
    again = weights(reinitialise(model, {}, seed=1))
    assert np.array_equal(again["fc1.weight"], fresh["fc1.weight"])
    assert not np.array_equal(weights(reinitialise(model, {}, seed=2))["fc1.weight"], fresh["fc1.weight"])


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_the_view_leaves_the_types_of_a_half_precision_model(half: ir.DataType) -> None:
    """Clones share types: widening the view once made the inputs of the file's own model float32."""
    model = mlp()
    for value in (*model.graph.inputs, *model.graph.outputs, *(out for node in model.graph for out in node.outputs)):
        value.type = ir.TensorType(half)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype(half.numpy()), name=value.name)
        value.type = ir.TensorType(half)
    before = ir.to_proto(model).SerializeToString()
    view, _ = training_view(model)
    assert ir.to_proto(model).SerializeToString() == before
    assert {value.dtype for value in (*view.graph.inputs, *view.graph.initializers.values())} == {ir.DataType.FLOAT}
