"""What zeros in tiles buy in plain ONNX Runtime on a CPU: the latency of layers and of whole networks, after / before.

    python benchmarks/tiles.py --output benchmarks/results/tiles.json

Latency is thread CPU time on one thread, the median of rounds that alternate with the dense model, as a ratio; the
ratio of the fastest samples stands beside it, which other work on the machine disturbs least. Each model is pruned as
``onnxprune MODEL --structure tiles --allocation uniform`` does it, and its outputs are compared with those of the same
model with masked weights. Weights are random: what they are changes no time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from exported import exported
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import model_io, runtime

Shape = tuple[int, ...]

PRODUCTS = ((128, 768, 3072), (1, 768, 3072), (197, 384, 1536), (128, 768, 768), (128, 3072, 768))
"""Rows, inputs and outputs of a MatMul."""

CONVOLUTIONS = ((14, 1024, 256, 1), (14, 256, 1024, 1), (28, 128, 512, 1), (14, 256, 256, 3))
"""Height and width, inputs, outputs and kernel of a Conv."""


class Network:
    """Collects nodes and constants of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def node(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node; return its output, which has its name."""
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, content: Any) -> str:
        """Add a constant."""
        self.constants[name] = np.asarray(content)
        return name

    def weights(self, name: str, *shape: int, fan_in: int) -> str:
        """Add random weights that keep the size of what they multiply."""
        return self.constant(name, self.rng.standard_normal(shape).astype(np.float32) / np.float32(math.sqrt(fan_in)))

    def model(self, inputs: tuple[int | str, ...], outputs: tuple[int | str, ...]) -> ir.Model:
        """The model; x is its input, and the last node's result its output."""
        x, y = (
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("x", inputs), (self.nodes[-1].output[0], outputs))
        )
        constants = [numpy_helper.from_array(content, name) for name, content in self.constants.items()]
        graph = helper.make_graph(self.nodes, "network", [x], [y], constants)
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def product(rows: int, inputs: int, outputs: int) -> ir.Model:
    """One MatMul."""
    network = Network()
    network.node("MatMul", ["x", network.weights("w", inputs, outputs, fan_in=inputs)], "y")
    return network.model((1, rows, inputs), (1, rows, outputs))


def convolution(size: int, inputs: int, outputs: int, kernel: int) -> ir.Model:
    """One Conv."""
    network = Network()
    weights = network.weights("w", outputs, inputs, kernel, kernel, fan_in=inputs * kernel**2)
    network.node("Conv", ["x", weights], "y", pads=[kernel // 2] * 4)
    return network.model((1, inputs, size, size), (1, outputs, size, size))


def bert(layers: int = 12, width: int = 768, inner: int = 3072, heads: int = 12, sequence: int = 128) -> ir.Model:
    """The encoder of BERT-base as PyTorch exports it: Devlin et al. 2018."""
    network = Network()
    size = width // heads
    network.constant("split", np.array([0, 0, heads, size]))
    network.constant("merge", np.array([0, 0, width]))
    for name, number in (("scale", 1 / math.sqrt(size)), ("root", math.sqrt(2)), ("one", 1), ("half", 0.5)):
        network.constant(name, np.float32(number))
    x = "x"
    for layer in range(layers):
        x = _encoder_layer(network, x, f"layer.{layer}", width, inner)
    return network.model(("batch", sequence, width), ("batch", sequence, width))


def _encoder_layer(network: Network, x: str, name: str, width: int, inner: int) -> str:
    node = network.node

    def linear(value: str, part: str, inputs: int, outputs: int) -> str:
        weights = network.weights(f"{name}.{part}.weight", inputs, outputs, fan_in=inputs)
        bias = network.weights(f"{name}.{part}.bias", outputs, fan_in=100)
        return node("Add", [node("MatMul", [value, weights], f"{name}.{part}.product"), bias], f"{name}.{part}")

    def norm(value: str, part: str) -> str:
        scale = network.constant(f"{name}.{part}.scale", np.ones(width, np.float32))
        shift = network.constant(f"{name}.{part}.shift", np.zeros(width, np.float32))
        return node("LayerNormalization", [value, scale, shift], f"{name}.{part}", axis=-1)

    parts = []
    for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        split = node("Reshape", [linear(x, part, width, width), "split"], f"{name}.{part}.split")
        parts.append(node("Transpose", [split], f"{name}.{part}.heads", perm=order))
    likeness = node("Mul", [node("MatMul", parts[:2], f"{name}.likeness"), "scale"], f"{name}.scaled")
    read = node("MatMul", [node("Softmax", [likeness], f"{name}.attention", axis=-1), parts[2]], f"{name}.read")
    back = node("Transpose", [read], f"{name}.back", perm=[0, 2, 1, 3])
    merged = node("Reshape", [back, "merge"], f"{name}.merged")
    x = norm(node("Add", [linear(merged, "output", width, width), x], f"{name}.sum"), "norm")
    up = linear(x, "up", width, inner)
    error = node("Erf", [node("Div", [up, "root"], f"{name}.divided")], f"{name}.erf")
    gelu = node("Mul", [up, node("Add", [error, "one"], f"{name}.shifted")], f"{name}.product")
    down = linear(node("Mul", [gelu, "half"], f"{name}.gelu"), "down", inner, width)
    return norm(node("Add", [down, x], f"{name}.sum.2"), "norm.2")


def cases() -> Iterator[tuple[str, Callable[[], ir.Model], tuple[float, ...]]]:
    """Yield names, models, and the shares of weights that go."""
    for rows, inputs, outputs in PRODUCTS:
        name = f"MatMul {rows} x {inputs} x {outputs}"
        yield name, lambda shape=(rows, inputs, outputs): product(*shape), (0.5, 0.75)  # type: ignore[misc]
    for size, inputs, outputs, kernel in CONVOLUTIONS:
        name = f"Conv {kernel}x{kernel}, {size}x{size}, {inputs} to {outputs}"
        yield name, lambda shape=(size, inputs, outputs, kernel): convolution(*shape), (0.5, 0.75)  # type: ignore[misc]
    yield "BERT-base, sequence 128", bert, (0.5, 0.75)
    yield "MobileNetV2", lambda: model_io.load(exported("mobilenet_v2")), (0.5, 0.75)
    yield "ResNet-50", lambda: model_io.load(exported("resnet50")), (0.5, 0.75)


def measured(model: ir.Model, sparsity: float, structure: str, rounds: int) -> dict[str, Any]:
    """Prune a model in tiles; its time over the dense model's, and its difference to the masked model."""
    result = onnxprune.prune(
        model, sparsity=sparsity, structure=structure, allocation="uniform", verification=False, latency=False
    )
    assert result.delivery is not None
    feeds = runtime.one_sample(model, seed=0)
    dense, tiled = (runtime.make_session(m, optimize="all", threads=1) for m in (model, result.model))
    masked = runtime.run(runtime.make_session(result.delivery.plain), feeds)
    latency = runtime.alternate(dense, tiled, feeds, rounds=rounds)
    return {
        "density": 1 - result.sparsity,
        "latency": latency.ratio,
        "least": latency.least_ratio,
        "dense_ms": 1000 * latency.a,
        "rounds": latency.rounds,
        "layers": len(result.delivery.tiles),
        "not_rewritten": len(result.delivery.untiled),
        "difference_to_masked": runtime.compare_outputs(masked, runtime.run(tiled, feeds)).max_rel,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure what has this in its name")
    parser.add_argument("--structure", default="tiles")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    for name, make, shares in cases():
        if arguments.only not in name:
            continue
        model = make()
        for share in shares:
            row = measured(model, share, arguments.structure, arguments.rounds)
            rows[f"{name}, {1 - share:.0%} of the weights"] = row
            print(f"{name:36} {1 - share:.0%}  {row['latency']:.2f} (least {row['least']:.2f})  {row}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"structure": arguments.structure, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
