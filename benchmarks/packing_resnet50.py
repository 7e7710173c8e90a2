"""Pack a ResNet-50-shaped model at several sparsities: file size, output error, load time, inference time.

    python benchmarks/packing_resnet50.py                          # sizes at all sparsities, times at 90 %
    python benchmarks/packing_resnet50.py --timed 0.5 0.9 0.99 --rounds 25

The network is ResNet-50 v1.5 with BatchNorm folded into the convolutions, opset 17. Its weights are random, Student-t
with 5 degrees of freedom (trained weights have heavier tails than a normal distribution) at He scale, and pruned by
magnitude over the whole network at once. Values that compress are random, so sizes depend on sparsity alone.

Times are thread CPU time with intra_op_num_threads=1. Both models of a comparison run in turns in one process; the
median over the rounds is compared. Results go to benchmarks/results/packing_resnet50.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxprune.packing import output_error, pack, to_sparse_initializers, unpack

RESULTS = Path(__file__).parent / "results" / "packing_resnet50.json"
# (label, values, mode), and what acceptance asks at 90 %: file size over dense fp32.
VARIANTS = {
    "auto fp32": ("fp32", "auto", 0.130),
    "smallest fp32": ("fp32", "smallest", 0.120),
    "gap8 fp32": ("fp32", "gap8", None),
    "gap4 fp32": ("fp32", "gap4", None),
    "bitmask fp32": ("fp32", "bitmask", None),
    "smallest fp16": ("fp16", "smallest", 0.070),
    "smallest int8": ("int8", "smallest", 0.045),
    "smallest codebook256": ("codebook256", "smallest", None),
    "smallest codebook16": ("codebook16", "smallest", 0.033),
}
STAGES = ((64, 256, 3, 1), (128, 512, 4, 2), (256, 1024, 6, 2), (512, 2048, 3, 2))


class Resnet50:
    """Builds the graph; `weights` holds the arrays by name."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.weights: dict[str, np.ndarray] = {}
        self.nodes: list[onnx.NodeProto] = []
        self._build()

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int, relu: bool = True) -> str:
        name = f"conv{len(self.weights) // 2}"
        drawn = self.random.standard_t(5, (cout, cin, kernel, kernel)) * np.sqrt(3 / 5)
        self.weights[f"{name}.weight"] = (drawn * np.sqrt(2 / (cin * kernel**2))).astype(np.float32)
        self.weights[f"{name}.bias"] = (self.random.standard_normal(cout) * 0.1).astype(np.float32)
        inputs = [x, f"{name}.weight", f"{name}.bias"]
        pad = kernel // 2
        self.nodes.append(helper.make_node("Conv", inputs, [name], strides=[stride] * 2, pads=[pad] * 4))
        return self.op("Relu", name) if relu else name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def _build(self) -> None:
        x = self.conv("image", 3, 64, 7, 2)
        x = self.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        cin = 64
        for inner, outer, blocks, stride in STAGES:
            for block in range(blocks):
                step = stride if block == 0 else 1
                y = self.conv(x, cin, inner, 1, 1)
                y = self.conv(y, inner, inner, 3, step)
                y = self.conv(y, inner, outer, 1, 1, relu=False)
                short = self.conv(x, cin, outer, 1, step, relu=False) if block == 0 else x
                x, cin = self.op("Relu", self.op("Add", y, short)), outer
        x = self.op("Flatten", self.op("GlobalAveragePool", x))
        self.weights["fc.weight"] = (self.random.standard_t(5, (1000, cin)) * 0.01).astype(np.float32)
        self.weights["fc.bias"] = np.zeros(1000, np.float32)
        self.nodes.append(helper.make_node("Gemm", [x, "fc.weight", "fc.bias"], ["logits"], transB=1))

    def model(self, sparsity: float) -> onnx.ModelProto:
        """The network with the smallest `sparsity` of its weights set to zero, biases untouched."""
        prunable = [w for w in self.weights.values() if w.ndim > 1]
        magnitudes = np.concatenate([np.abs(w).reshape(-1) for w in prunable])
        rank = int(sparsity * magnitudes.size)
        threshold = np.partition(magnitudes, rank)[rank] if rank else 0.0
        arrays = {k: np.where(np.abs(w) < threshold, 0, w) if w.ndim > 1 else w for k, w in self.weights.items()}
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])
        tensors = [numpy_helper.from_array(a.astype(np.float32), k) for k, a in arrays.items()]
        graph = helper.make_graph(self.nodes, "resnet50", [image], [logits], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def session(model: bytes, level: ort.GraphOptimizationLevel | None = None, save: str = "") -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if level is not None:
        options.graph_optimization_level = level
    if save:
        options.optimized_model_filepath = save
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median thread CPU seconds of each; the two take turns, and so does which one goes first."""
    times: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for i in range(rounds):
        for j in (0, 1) if i % 2 else (1, 0):
            start = time.thread_time()
            (first, second)[j]()
            times[j].append(time.thread_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def zipped(data: bytes) -> int:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("model.onnx", data)
    return len(buffer.getvalue())


def folds(data: bytes) -> bool:
    """Whether ONNX Runtime leaves no decoder operator in the graph, at basic and at default optimisation."""
    with tempfile.TemporaryDirectory() as folder:
        for level in (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, None):
            path = os.path.join(folder, "optimised.onnx")
            session(data, level, path)
            left = {node.op_type for node in onnx.load(path).graph.node}
            if left & {"CumSum", "ScatterElements", "GatherElements", "ConstantOfShape", "BitShift"}:
                return False
    return True


def same_outputs(dense: bytes, packed: bytes, image: np.ndarray) -> bool:
    """Bit-identical at basic and at default optimisation."""
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, None):
        outputs = [session(m, level).run(None, {"image": image})[0] for m in (dense, packed)]
        if outputs[0].tobytes() != outputs[1].tobytes():
            return False
    return True


def measure(dense: onnx.ModelProto, label: str, image: np.ndarray, rounds: int, dense_bytes: bytes) -> dict[str, Any]:
    values, mode, _ = VARIANTS[label]
    model = ir.from_proto(dense)
    start = time.thread_time()
    packed_ir, report = pack(model, values=values, mode=mode)  # type: ignore[arg-type]
    seconds = time.thread_time() - start
    proto = ir.to_proto(packed_ir)
    onnx.checker.check_model(proto, full_check=True)
    packed = proto.SerializeToString()
    forms: dict[str, int] = {}
    for tensor in report.tensors:
        forms[tensor.form] = forms.get(tensor.form, 0) + 1
    row: dict[str, Any] = {
        "bytes": len(packed),
        "ratio": len(packed) / len(dense_bytes),
        "pack_seconds": round(seconds, 2),
        "forms": forms,
        "folds": folds(packed),
    }
    plain = ir.to_proto(unpack(packed_ir))
    if values == "fp32":
        row["bit_identical_outputs"] = same_outputs(dense_bytes, packed, image)
        before = {t.name: t.raw_data for t in dense.graph.initializer}
        row["unpacks_bit_exact"] = before == {t.name: t.raw_data for t in plain.graph.initializer}
    else:
        error = output_error(model, packed_ir, [{"image": image}])
        row["output_relative_error"], row["output_max_abs_error"] = error.relative, error.max_abs
    if rounds:
        row |= timings(plain.SerializeToString(), packed, image, rounds)
    return row


def timings(reference: bytes, packed: bytes, image: np.ndarray, rounds: int) -> dict[str, Any]:
    """Load and inference time of both; the reference holds the same values unpacked, so that only packing differs."""
    load = alternate(lambda: session(reference), lambda: session(packed), rounds)
    sessions = session(reference), session(packed)
    run = alternate(
        lambda: sessions[0].run(None, {"image": image}), lambda: sessions[1].run(None, {"image": image}), rounds
    )
    return {
        "load_ms": [round(t * 1e3, 1) for t in load],
        "load_ratio": load[1] / load[0],
        "inference_ms": [round(t * 1e3, 2) for t in run],
        "inference_ratio": run[1] / run[0],
    }


def verdict(results: dict[str, Any]) -> list[str]:
    """Acceptance limits that are missed, in words; empty when all hold."""
    missed = []
    for sparsity, block in results["sparsities"].items():
        bounds = {"dense": 1.0, "sparse_initializer": block["sparse_initializer"], "1.05 x zip": 1.05 * block["zip9"]}
        for label, row in block["variants"].items():
            limit = VARIANTS[label][2]
            if sparsity == "0.9" and limit is not None and row["ratio"] > limit:
                missed.append(f"{sparsity} {label}: {row['ratio']:.4f} > {limit}")
            if label.startswith(("auto", "smallest")):
                missed += [f"{sparsity} {label}: larger than {n}" for n, b in bounds.items() if row["ratio"] > b]
            for key in ("folds", "bit_identical_outputs", "unpacks_bit_exact"):
                missed += [] if row.get(key, True) else [f"{sparsity} {label}: not {key}"]
            if row.get("inference_ratio", 1) > 1.02:
                missed.append(f"{sparsity} {label}: inference {row['inference_ratio']:.3f} of unpacked")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--timed", type=float, nargs="*", default=[0.9], help="sparsities at which to measure times")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    network = Resnet50(arguments.seed)
    image = np.random.default_rng(arguments.seed).standard_normal((1, 3, 224, 224)).astype(np.float32)
    versions = {"onnxruntime": ort.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
    results: dict[str, Any] = {"versions": versions, "machine": platform.machine(), "rounds": arguments.rounds}
    results["sparsities"] = {}
    for sparsity in arguments.sparsities:
        dense = network.model(sparsity)
        data = dense.SerializeToString()
        sparse = to_sparse_initializers(ir.from_proto(dense)).ByteSize() / len(data)
        block = {
            "dense_bytes": len(data),
            "zip9": zipped(data) / len(data),
            "sparse_initializer": sparse,
            "variants": {},
        }
        results["sparsities"][f"{sparsity:g}"] = block
        print(f"sparsity {sparsity:g}: zip -9 {block['zip9']:.4f}, sparse_initializer {sparse:.4f}", flush=True)
        for label in arguments.variants:
            row = measure(dense, label, image, arguments.rounds if sparsity in arguments.timed else 0, data)
            block["variants"][label] = row
            error = f", output error {row['output_relative_error']:.4f}" if "output_relative_error" in row else ""
            timed = "load_ratio" in row
            times = f"load x{row['load_ratio']:.2f}, inference x{row['inference_ratio']:.3f}" if timed else ""
            print(f"  {label:22s}{row['ratio']:.4f}  {times}{error}  {row['forms']}", flush=True)
    results["missed"] = verdict(results)
    print("\n".join(results["missed"]) or "all limits hold")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
