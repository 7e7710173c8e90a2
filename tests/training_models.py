"""Small ONNX models and data sets for the training tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.data.readers import Data
from onnxprune.data.sets import Sets
from onnxprune.data.sources import Arrays
from onnxprune.pipeline.checkpoint import Store, fingerprint
from onnxprune.pipeline.loop import run_loop
from onnxprune.pipeline.step import State
from onnxprune.pipeline.trainer import Trainer
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.schedules import sparsities
from onnxprune.runtime import make_session, run
from onnxprune.structure.rewrite import Kept
from onnxprune.training.masks import Masks

Prune = Callable[[ir.Model, float, int], tuple[ir.Model, Masks]]
Clean = Callable[[ir.Model], tuple[ir.Model, Kept]]

FEATURES, HIDDEN, CLASSES = 8, 16, 3


def _initializer(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))


def _model(
    nodes: list[ir.Node], shape: list[str | int], weights: dict[str, ir.Value], output: str, opset: int
) -> ir.Model:
    image = next(i for node in nodes for i in node.inputs if i is not None and i.name == "x")
    image.shape, image.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    last = nodes[-1].outputs[0]
    last.name, last.type = output, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [image], [last], nodes=nodes, initializers=list(weights.values()), opset_imports={"": opset}, name="g"
    )
    for number, node in enumerate(graph):
        node.name = node.name or f"{node.op_type}_{number}"
        for out in node.outputs:
            out.name = out.name or f"v{number}"
    return ir.Model(graph, ir_version=8)


def mlp(seed: int = 0, softmax: str | None = None, batch: str | int = "N", opset: int = 17) -> ir.Model:
    """x [N, 8] -> Gemm fc1 [16] -> Relu -> Gemm fc2 [3] (-> Softmax or LogSoftmax) -> scores."""
    rng = np.random.default_rng(seed)
    w = {
        "fc1.weight": rng.standard_normal((HIDDEN, FEATURES)) / FEATURES**0.5,
        "fc1.bias": np.zeros(HIDDEN),
        "fc2.weight": rng.standard_normal((CLASSES, HIDDEN)) / HIDDEN**0.5,
        "fc2.bias": np.zeros(CLASSES),
    }
    v = {name: _initializer(name, array.astype(np.float32)) for name, array in w.items()}
    x = ir.Value(name="x")
    fc1 = ir.node("Gemm", [x, v["fc1.weight"], v["fc1.bias"]], {"transB": 1}, name="fc1")
    relu = ir.node("Relu", [fc1.outputs[0]])
    nodes = [fc1, relu, ir.node("Gemm", [relu.outputs[0], v["fc2.weight"], v["fc2.bias"]], {"transB": 1}, name="fc2")]
    if softmax:
        nodes.append(ir.node(softmax, [nodes[-1].outputs[0]], {"axis": -1}))
    return _model(nodes, [batch, FEATURES], v, "scores", opset)


def convnet(seed: int = 0) -> ir.Model:
    """x [N, 1, 8, 8] -> Conv [4] -> BatchNormalization -> Relu -> GlobalAveragePool -> Flatten -> MatMul + bias [3]."""
    rng = np.random.default_rng(seed)
    w = {
        "conv.weight": rng.standard_normal((4, 1, 3, 3)) / 3,
        "bn.scale": np.ones(4),
        "bn.bias": np.zeros(4),
        "bn.mean": np.zeros(4),
        "bn.var": np.ones(4),
        "fc.weight": rng.standard_normal((4, CLASSES)) / 2,
        "fc.bias": np.zeros(CLASSES),
    }
    v = {name: _initializer(name, array.astype(np.float32)) for name, array in w.items()}
    x = ir.Value(name="x")
    conv = ir.node("Conv", [x, v["conv.weight"]], {"pads": [1, 1, 1, 1]}, name="conv")
    norm = ir.node("BatchNormalization", [conv.outputs[0], v["bn.scale"], v["bn.bias"], v["bn.mean"], v["bn.var"]])
    relu = ir.node("Relu", [norm.outputs[0]])
    pool = ir.node("GlobalAveragePool", [relu.outputs[0]])
    flat = ir.node("Flatten", [pool.outputs[0]])
    product = ir.node("MatMul", [flat.outputs[0], v["fc.weight"]], name="fc")
    nodes = [conv, norm, relu, pool, flat, product, ir.node("Add", [product.outputs[0], v["fc.bias"]])]
    return _model(nodes, ["N", 1, 8, 8], v, "scores", 17)


def blobs(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated clouds: x float32 [count, 8], class numbers int64 [count]."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count)
    centres = np.random.default_rng(99).standard_normal((CLASSES, FEATURES)) * 2
    return (centres[label] + rng.standard_normal((count, FEATURES))).astype(np.float32), label


def blob_data(count: int = 300, seed: int = 0, labels: bool = True) -> Data:
    """The same as the model's data."""
    x, label = blobs(count, seed)
    return Data(Arrays((x,), (label,)), (0,)) if labels else Data(Arrays((x,)), ())


def image_data(count: int = 120) -> Data:
    """Images [count, 1, 8, 8] whose class is how bright they are."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, CLASSES, count)
    x = rng.standard_normal((count, 1, 8, 8)) * (1 + label[:, None, None, None])
    return Data(Arrays((x.astype(np.float32),), (label,)), (0,))


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    """The model's initializers as arrays."""
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


def accuracy(model: ir.Model, data: Data) -> float:
    """The share of samples that a model classifies rightly, in ONNX Runtime."""
    source = data.source
    assert isinstance(source, Arrays)
    (scores,) = run(make_session(model), {"x": source.inputs[0]}).values()
    return float((np.asarray(scores).argmax(1) == source.targets[0]).mean())


def random_masks(model: ir.Model, share: float = 0.5, seed: int = 0) -> dict[str, np.ndarray]:
    """Masks that keep `share` of each weight of two or more axes."""
    rng = np.random.default_rng(seed)
    return {name: rng.random(w.shape) < share for name, w in weights(model).items() if w.ndim >= 2}


def magnitude(model: ir.Model, sparsity: float, step: int) -> tuple[ir.Model, Masks]:
    """The smallest weights of each layer go."""
    masks = {}
    for name, weight in weights(model).items():
        if weight.ndim >= 2:
            order = np.argsort(np.abs(weight), axis=None)
            mask = np.ones(weight.size, bool)
            mask[order[: round(sparsity * weight.size)]] = False
            masks[name] = mask.reshape(weight.shape)
    return model, masks


@dataclass(frozen=True)
class SimpleSteps:
    """What prunes in the loop, made of two functions."""

    how: Prune = magnitude
    clean_model: Clean | None = None

    def prune(self, state: State, sparsity: float, number: int) -> State:
        """Prune by the function."""
        model, masks = self.how(state.model, sparsity, number)
        return replace(state, model=model, masks=masks)

    def chosen(self, state: State, sparsity: float, number: int) -> Masks:
        """The masks that it would make."""
        return self.how(state.model, sparsity, number)[1]

    def clean(self, state: State) -> tuple[State, Kept]:
        """Remove dead units by the function."""
        assert self.clean_model is not None
        model, kept = self.clean_model(state.model)
        return replace(state, model=model), kept


def prune_and_train(
    model: ir.Model,
    recipe: Recipe,
    data: Data,
    prune: Prune = magnitude,
    clean: Clean | None = None,
    folder: Path | None = None,
) -> State:
    """Run the loop with training, pruning by a function."""
    store = None if folder is None else Store(folder, fingerprint(model, recipe))
    trainer = Trainer(recipe, model, Sets(data, None, None), store=store)
    wanted = sparsities(recipe.schedule, recipe.iterations, recipe.sparsity, recipe.initial_sparsity)
    return run_loop(State(model), SimpleSteps(prune, clean), wanted, trainer, remove_dead=clean is not None)
