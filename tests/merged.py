"""A decoder as optimum merged them: one If with a branch for the first tokens and one that reads a cache.

merged.decoder(layers=2)       inputs input_ids, attention_mask, past_key_values.*, use_cache_branch
merged.feeds(past=3, heads=4)  inputs for one of the branches: of the first one where there is no past
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS, SIZE, INNER = 40, 32, 4, 8, 48
_TYPES = {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64}


def _branch(layers: int, *, cached: bool) -> list[onnx.NodeProto]:
    """The nodes of one branch; their names are those of the other one, as exporters leave them."""
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], name=f"/{output}", **attributes))
        return output

    def heads(x: str, name: str, kind: str) -> str:
        made = add("MatMul", [x, f"{name}.{kind}.weight"], f"{name}.{kind}")
        apart = add("Reshape", [made, "by_head"], f"{name}.{kind}.by_head")
        return add("Transpose", [apart], f"{name}.{kind}.turned", perm=[0, 2, 1, 3])

    h = add("Gather", ["embedding", "input_ids"], "embedded")
    mask = add("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
    mask = add("Unsqueeze", [mask, "middle"], "mask.wide")
    mask = add("Mul", [add("Sub", [mask, "one"], "mask.less"), "much"], "mask.bias")
    for i in range(layers):
        x = add("LayerNormalization", [h, f"{i}.norm1", f"{i}.shift1"], f"{i}.normed", axis=-1)
        q, k, v = (heads(x, str(i), kind) for kind in "qkv")
        present = []
        for kind, new in (("key", k), ("value", v)):
            past = [f"past_key_values.{i}.{kind}"] if cached else []
            op_type, settings = ("Concat", {"axis": 2}) if cached else ("Identity", {})
            present.append(add(op_type, [*past, new], f"present.{i}.{kind}", **settings))
        keys = add("Transpose", present[:1], f"{i}.keys", perm=[0, 1, 3, 2])
        scores = add("Mul", [add("MatMul", [q, keys], f"{i}.scores"), "scale"], f"{i}.scaled")
        weights = add("Softmax", [add("Add", [scores, mask], f"{i}.masked")], f"{i}.shares", axis=-1)
        mixed = add("Transpose", [add("MatMul", [weights, present[1]], f"{i}.mixed")], f"{i}.back", perm=[0, 2, 1, 3])
        mixed = add("MatMul", [add("Reshape", [mixed, "joined"], f"{i}.joined"), f"{i}.out.weight"], f"{i}.out")
        h = add("Add", [h, mixed], f"{i}.attended")
        x = add("LayerNormalization", [h, f"{i}.norm2", f"{i}.shift2"], f"{i}.normed2", axis=-1)
        inner = add("Relu", [add("MatMul", [x, f"{i}.up.weight"], f"{i}.up")], f"{i}.inner")
        h = add("Add", [h, add("MatMul", [inner, f"{i}.down.weight"], f"{i}.down")], f"{i}.fed")
    add("MatMul", [h, "head.weight"], "logits")
    return nodes


def _constants(layers: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    arrays = {
        "embedding": 3 * weight(VOCABULARY, WIDTH), "head.weight": weight(WIDTH, VOCABULARY),
        "by_head": np.array([0, 0, HEADS, SIZE]), "joined": np.array([0, 0, HEADS * SIZE]),
        "middle": np.array([1, 2]), "one": np.array(1, np.float32), "much": np.array(1e4, np.float32),
        "scale": np.array(SIZE**-0.5, np.float32),
    }  # fmt: skip
    for i in range(layers):
        arrays |= {f"{i}.{kind}.weight": weight(WIDTH, HEADS * SIZE) for kind in "qkv"}
        arrays |= {f"{i}.out.weight": weight(HEADS * SIZE, WIDTH), f"{i}.up.weight": weight(WIDTH, INNER),
                   f"{i}.down.weight": weight(INNER, WIDTH)}  # fmt: skip
        for n in (1, 2):
            arrays[f"{i}.norm{n}"] = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
            arrays[f"{i}.shift{n}"] = 0.1 * rng.standard_normal(WIDTH).astype(np.float32)
    return arrays


def decoder(layers: int = 2) -> onnx.ModelProto:
    """The decoder; small constants lie in the branches, the weights outside, where both branches read them."""
    arrays = _constants(layers)
    inside = [numpy_helper.from_array(array, name) for name, array in arrays.items() if array.dtype == np.int64]
    outside = [numpy_helper.from_array(array, name) for name, array in arrays.items() if array.dtype != np.int64]
    names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]

    def outputs(length: str) -> list[onnx.ValueInfoProto]:
        cache = ["batch_size", HEADS, length, SIZE]
        logits = ["batch_size", "sequence_length", VOCABULARY]
        return [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits),
                *(helper.make_tensor_value_info(f"present.{n}", TensorProto.FLOAT, cache) for n in names)]  # fmt: skip

    bodies = {
        name: helper.make_graph(_branch(layers, cached=cached), name, [], outputs("present_length"), inside)
        for name, cached in (("then_branch", True), ("else_branch", False))
    }
    ends = outputs("present_length")
    choice = helper.make_node("If", ["use_cache_branch"], [end.name for end in ends], name="optimum::if", **bodies)
    shapes = {"input_ids": ["batch_size", "sequence_length"], "attention_mask": ["batch_size", "attention_length"]}
    inputs = [
        *(helper.make_tensor_value_info(name, _TYPES[name], shape) for name, shape in shapes.items()),
        *(helper.make_tensor_value_info(f"past_key_values.{n}", TensorProto.FLOAT,
                                        ["batch_size", HEADS, "past_sequence_length", SIZE]) for n in names),
        helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]),
    ]  # fmt: skip
    graph = helper.make_graph([choice], "merged", inputs, ends, outside)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(past: int, heads: tuple[int, ...] = (HEADS, HEADS), size: int = SIZE, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the branch with a cache, or of the first one with a past that it does not read (``past`` 0)."""
    rng = np.random.default_rng(seed)
    length = past or 1  # optimum feeds one position that nobody reads
    caches = {f"past_key_values.{i}.{kind}": rng.standard_normal((2, n, length, size)).astype(np.float32)
              for i, n in enumerate(heads) for kind in ("key", "value")}  # fmt: skip
    return {"input_ids": rng.integers(0, VOCABULARY, (2, 3)), "attention_mask": np.ones((2, 3 + past), np.int64),
            **caches, "use_cache_branch": np.array([past > 0])}  # fmt: skip
