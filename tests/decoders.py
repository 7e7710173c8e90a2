"""Decoders as onnxruntime-genai's builder writes them, by hand: GroupQueryAttention, fused norms, symbolic caches.

decoders.fused(layers=2)              an onnx.ModelProto with inputs input_ids, attention_mask, past_key_values.*
decoders.fused(experts=6, bits=4)     the same with a mixture of experts: MoE, or QMoE with weights of 4 bits
decoders.settings(layers=2)           what its genai_config.json says of it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS, KV_HEADS, SIZE, INNER, LONGEST = 60, 32, 8, 4, 16, 48, 128
BLOCK, TAKEN = 16, 2  # inputs that share a scale, experts for each token
_MICROSOFT = "com.microsoft"
_CONTRIB = ("GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MoE", "QMoE")


class _Writer:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        array = self.rng.standard_normal(shape) / np.sqrt(shape[0])
        return self.constant(name, array.astype(np.float32))

    def scale(self, name: str, n: int) -> str:
        return self.constant(name, self.rng.uniform(0.5, 1.5, n).astype(np.float32))

    def node(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        domain = _MICROSOFT if op_type in _CONTRIB else ""
        self.nodes.append(helper.make_node(op_type, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def matmul(self, x: str, name: str, *shape: int) -> str:
        return self.node("MatMul", [x, self.weight(f"{name}.weight", *shape)], [f"{name}.out"])


def _lengths(w: _Writer) -> tuple[str, str]:
    """The last place of every sequence, and the total length, from the mask."""
    w.constant("one", np.array([1], np.int64))
    w.node("ReduceSum", ["attention_mask", "one"], ["seen"], keepdims=0)
    w.node("Sub", ["seen", "one"], ["last"])
    w.node("Cast", ["last"], ["last_32"], to=TensorProto.INT32)
    w.node("Shape", ["attention_mask"], ["mask_shape"])
    w.node("Gather", ["mask_shape", w.constant("column", np.array(1, np.int64))], ["total"])
    w.node("Cast", ["total"], ["total_32"], to=TensorProto.INT32)
    return "last_32", "total_32"


def _tables(w: _Writer) -> tuple[str, str]:
    angles = np.outer(np.arange(LONGEST), 10000.0 ** (-np.arange(0, SIZE, 2) / SIZE))
    return (w.constant("cos_cache", np.cos(angles).astype(np.float32)),
            w.constant("sin_cache", np.sin(angles).astype(np.float32)))  # fmt: skip


def _norm(w: _Writer, trunk: str, added: str, name: str, *, last: bool = False) -> tuple[str, str]:
    """The trunk with what a branch adds, and its norm, as one operator."""
    outputs = [f"{name}.normed"] if last else [f"{name}.normed", "", "", f"{name}.trunk"]
    w.node("SkipSimplifiedLayerNormalization", [trunk, added, w.scale(f"{name}.scale", WIDTH)], outputs, epsilon=1e-6)
    return outputs[0], outputs[-1]


def _attention(w: _Writer, x: str, i: int, shared: list[str]) -> str:
    packed = w.matmul(x, f"layers.{i}.qkv", WIDTH, (HEADS + 2 * KV_HEADS) * SIZE)
    cache = [f"past_key_values.{i}.{kind}" for kind in ("key", "value")]
    lengths, tables = shared[:2], shared[2:]
    outputs = [f"layers.{i}.attention", f"present.{i}.key", f"present.{i}.value"]
    w.node("GroupQueryAttention", [packed, "", "", *cache, *lengths, *tables], outputs, num_heads=HEADS,
           kv_num_heads=KV_HEADS, do_rotary=1, scale=SIZE**-0.5)  # fmt: skip
    return w.matmul(outputs[0], f"layers.{i}.out", HEADS * SIZE, WIDTH)


def _mlp(w: _Writer, x: str, i: int) -> str:
    gate, up = (w.matmul(x, f"layers.{i}.{kind}", WIDTH, INNER) for kind in ("gate", "up"))
    w.node("Sigmoid", [gate], [f"{gate}.sigmoid"])
    w.node("Mul", [gate, f"{gate}.sigmoid"], [f"{gate}.swish"])
    w.node("Mul", [f"{gate}.swish", up], [f"layers.{i}.inner"])
    return w.matmul(f"layers.{i}.inner", f"layers.{i}.down", INNER, WIDTH)


def _experts(w: _Writer, x: str, i: int, experts: int, bits: int) -> str:
    """A mixture of experts with fused SwiGLU, gate and up next to each other; 4 bits have a scale for each block.

    8 bits have one for each output: with blocks the kernel rounds activations to 8 bits as well.
    """
    scores = w.matmul(x, f"layers.{i}.router", WIDTH, experts)
    rows = w.constant(f"layers.{i}.rows", np.array([-1, experts], np.int64))
    inputs = [x, w.node("Reshape", [scores, rows], [f"layers.{i}.scores"])]
    for name, n, k in (("gate_up", 2 * INNER, WIDTH), ("down", WIDTH, INNER)):
        prefix = f"layers.{i}.experts.{name}"
        bias = w.constant(f"{prefix}.bias", 0.1 * w.rng.standard_normal((experts, n)).astype(np.float32))
        if bits:
            scales = w.rng.uniform(0.3, 1, (experts, n, k // BLOCK) if bits == 4 else (experts, n)) / (1 << bits)
            weight = w.rng.integers(0, 256, (experts, n, k * bits // 8)).astype(np.uint8)
            inputs += [w.constant(f"{prefix}.weight", weight),
                       w.constant(f"{prefix}.scales", scales.astype(np.float32)), bias]  # fmt: skip
        else:
            array = w.rng.standard_normal((experts, n, k)) / np.sqrt(k)
            inputs += [w.constant(f"{prefix}.weight", array.astype(np.float32)), bias]
    packed = {"expert_weight_bits": bits, **({"block_size": BLOCK} if bits == 4 else {})} if bits else {}
    return w.node("QMoE" if bits else "MoE", inputs, [f"layers.{i}.mixed"], k=TAKEN, activation_type="swiglu",
                  swiglu_fusion=1, normalize_routing_weights=1, **packed)  # fmt: skip


def fused(layers: int = 2, seed: int = 0, *, experts: int = 0, bits: int = 0) -> onnx.ModelProto:
    """A Llama-shaped decoder of a few layers with random weights; ``bits`` are those of the weights of its experts."""
    w = _Writer(seed)
    shared = [*_lengths(w), *_tables(w)]
    trunk = w.node("Gather", [w.weight("embedding", VOCABULARY, WIDTH), "input_ids"], ["embedded"])
    x = w.node("SimplifiedLayerNormalization", [trunk, w.scale("norm.scale", WIDTH)], ["norm.normed"], axis=-1,
               epsilon=1e-6, stash_type=1)  # fmt: skip
    for i in range(layers):
        x, trunk = _norm(w, trunk, _attention(w, x, i, shared), f"layers.{i}.norm1")
        branch = _experts(w, x, i, experts, bits) if experts else _mlp(w, x, i)
        x, trunk = _norm(w, trunk, branch, f"layers.{i}.norm2", last=i == layers - 1)
    w.node("MatMul", [x, w.weight("head", WIDTH, VOCABULARY)], ["logits"])
    ids, floats, cache = TensorProto.INT64, TensorProto.FLOAT, ["batch_size", KV_HEADS]
    names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    inputs = [("input_ids", ids, ["batch_size", "sequence_length"]),
              ("attention_mask", ids, ["batch_size", "total_sequence_length"]),
              *((f"past_key_values.{n}", floats, [*cache, "past_sequence_length", "kv_cache_dim"])
                for n in names)]  # fmt: skip
    outputs = [("logits", floats, ["batch_size", "sequence_length", VOCABULARY]),
               *((f"present.{n}", floats, [*cache, "total_sequence_length", "kv_cache_dim"])
                 for n in names)]  # fmt: skip
    graph = helper.make_graph(w.nodes, "decoder", [helper.make_tensor_value_info(*i) for i in inputs],
                              [helper.make_tensor_value_info(*o) for o in outputs], w.constants)  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(_MICROSOFT, 1)],
                             ir_version=10)  # fmt: skip


def settings(layers: int = 2) -> dict[str, Any]:
    """What genai_config.json says of `fused`."""
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []}, "filename": "model.onnx",
        "head_size": SIZE, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                   "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
        "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value"},
    }  # fmt: skip
    search = {"do_sample": False, "max_length": LONGEST, "min_length": 0, "num_beams": 1, "num_return_sequences": 1,
              "past_present_share_buffer": False, "top_k": 1, "top_p": 1.0, "temperature": 1.0,
              "repetition_penalty": 1.0, "length_penalty": 1.0, "early_stopping": True}  # fmt: skip
    model = {"type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "context_length": LONGEST,
             "vocab_size": VOCABULARY, "decoder": decoder}  # fmt: skip
    return {"model": model, "search": search}


def write(folder: Path, layers: int = 2, experts: int = 0) -> Path:
    """Write the model with both configurations beside it; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(fused(layers, experts=experts), folder / "model.onnx")
    (folder / "genai_config.json").write_text(json.dumps(settings(layers), indent=4))
    config = {"model_type": "llama", "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": layers,
              "num_key_value_heads": KV_HEADS, "head_dim": SIZE, "intermediate_size": INNER,
              "vocab_size": VOCABULARY, **({"num_local_experts": experts} if experts else {})}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder / "model.onnx"
