"""Peak memory and time on decoders that are large beside the memory of the machine.

    python benchmarks/beyond_memory.py --output benchmarks/results/beyond_memory.json          both sizes, all runs
    python benchmarks/beyond_memory.py --output out.json --gigabytes 0.7 --types float32 --runs weights --tokens 4x512

A decoder of the size asked for is written into a temporary folder, with its weights in external data: random numbers,
the same for the same size. Each run is a process of its own that prunes and verifies it. Its anonymous memory is read
from /proc every 20 milliseconds; pages of mapped files do not count, for the system can drop them. Runs that the output
holds already are not done again, so that a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

VOCABULARY, HEAD_SIZE = 16_000, 64
WIDTHS = {"small": (1024, 2816), "large": (2048, 5632)}  # of the trunk and of the MLP
RUNS: dict[str, dict[str, Any]] = {
    "weights": {"sparsity": 0.5},
    "2:4": {"structure": "2:4", "criterion": "wanda", "recover": ["no"]},
    "channels": {"sparsity": 0.3, "structure": "channels"},
}
CHILD = """
import json, sys, onnxprune
settings = json.loads(sys.argv[3])
result = onnxprune.prune(sys.argv[1], progress=lambda stage: print(stage, flush=True), **settings)
print("save", flush=True)
onnxprune.save(result, sys.argv[2], force=True)
print("done", flush=True)
"""


class Writer:
    """Nodes of a decoder, and its weights, which go to a file as they are made."""

    def __init__(self, file: Any, dtype: np.dtype[Any]) -> None:
        self.file, self.dtype, self.rng = file, dtype, np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        """A matrix in external data."""
        array = (self.rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))).astype(self.dtype)
        self.file.write(b"\\0" * (-self.file.tell() % 4096))
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(self.dtype), dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": "decoder.data", "offset": str(self.file.tell()), "length": str(array.nbytes)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        array.tofile(self.file)
        self.constants.append(tensor)
        return name

    def constant(self, name: str, array: Any) -> str:
        """A small constant."""
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node of one output."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def norm(self, x: str, name: str, width: int) -> str:
        """A root-mean-square normalisation, spelled out and calculated in float32, as exporters write it."""
        wide = self.node("Cast", [x], f"{name}.wide", to=TensorProto.FLOAT)
        square = self.node("Mul", [wide, wide], f"{name}.square")
        mean = self.node("ReduceMean", [square, "last_axis"], f"{name}.mean")
        root = self.node("Sqrt", [self.node("Add", [mean, "epsilon"], f"{name}.shifted")], f"{name}.root")
        normed = self.node("Div", [wide, root], f"{name}.normed")
        back = self.node("Cast", [normed], f"{name}.back", to=helper.np_dtype_to_tensor_dtype(self.dtype))
        return self.node("Mul", [back, self.constant(f"{name}.weight", np.ones(width, self.dtype))], f"{name}.out")

    def attention(self, x: str, name: str, width: int) -> str:
        """Causal self-attention."""
        heads: dict[str, str] = {}
        for part in "qkv":
            flat = self.node("MatMul", [x, self.weight(f"{name}.{part}.weight", width, width)], f"{name}.{part}.out")
            split = self.node("Reshape", [flat, "heads_shape"], f"{name}.{part}.split")
            perm = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
            heads[part] = self.node("Transpose", [split], f"{name}.{part}", perm=perm)
        scores = self.node("MatMul", [heads["q"], heads["k"]], f"{name}.scores")
        scaled = self.node("Mul", [scores, "scale"], f"{name}.scaled")
        masked = self.node("Add", [scaled, "causal"], f"{name}.masked")
        mixed = self.node("MatMul", [self.node("Softmax", [masked], f"{name}.p", axis=-1), heads["v"]], f"{name}.mixed")
        back = self.node("Transpose", [mixed], f"{name}.back", perm=[0, 2, 1, 3])
        flat = self.node("Reshape", [back, "flat_shape"], f"{name}.flat")
        return self.node("MatMul", [flat, self.weight(f"{name}.o.weight", width, width)], f"{name}.o.out")

    def mlp(self, x: str, name: str, width: int, inner: int) -> str:
        """A gated MLP."""
        gate = self.node("MatMul", [x, self.weight(f"{name}.gate.weight", width, inner)], f"{name}.gate")
        up = self.node("MatMul", [x, self.weight(f"{name}.up.weight", width, inner)], f"{name}.up")
        swish = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.swish")
        gated = self.node("Mul", [swish, up], f"{name}.gated")
        return self.node("MatMul", [gated, self.weight(f"{name}.down.weight", inner, width)], f"{name}.down")

    def causal(self) -> None:
        """A mask that lets each token see itself and those before it."""
        self.node("Shape", ["input_ids"], "shape")
        self.node("Gather", ["shape", self.constant("one", np.int64(1))], "length")
        self.node("Range", ["zero", "length", "one"], "places")
        self.node("Unsqueeze", ["places", self.constant("first_axis", [1])], "rows")
        self.node("Greater", ["places", "rows"], "hidden")
        self.node("Where", ["hidden", self.constant("low", self.dtype.type(-1e4)), "none"], "causal")


def make_decoder(folder: Path, gigabytes: float, dtype: np.dtype[Any]) -> Path:
    """Write a decoder of about this size in float32 and return its path."""
    width, inner = WIDTHS["small" if gigabytes < 1.5 else "large"]
    per_layer = 4 * width * width + 3 * width * inner
    layers = max(1, round((gigabytes * 1e9 / 4 - 2 * VOCABULARY * width) / per_layer))
    with open(folder / "decoder.data", "wb") as file:
        w = Writer(file, dtype)
        w.constant("last_axis", [-1])
        w.constant("zero", np.int64(0))
        w.constant("none", dtype.type(0))
        w.constant("epsilon", np.float32(1e-6))
        w.constant("scale", dtype.type(HEAD_SIZE**-0.5))
        w.constant("heads_shape", [0, 0, width // HEAD_SIZE, HEAD_SIZE])
        w.constant("flat_shape", [0, 0, width])
        w.causal()
        x = w.node("Gather", [w.weight("embedding.weight", VOCABULARY, width), "input_ids"], "embedded")
        for i in range(layers):
            for part, half in (("attention", w.attention), ("mlp", lambda *a: w.mlp(*a, inner))):
                name = f"layers.{i}.{part}"
                x = w.node("Add", [x, half(w.norm(x, f"{name}.norm", width), name, width)], f"{name}.sum")
        w.node("MatMul", [w.norm(x, "norm", width), w.weight("head.weight", width, VOCABULARY)], "logits")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info(
        "logits", helper.np_dtype_to_tensor_dtype(dtype), ["batch", "sequence", VOCABULARY]
    )
    graph = helper.make_graph(w.nodes, "decoder", [ids], [logits], w.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "decoder.onnx")
    return folder / "decoder.onnx"


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def measured(model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Prune in a process of its own: peak of its anonymous memory by stage, CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    folder = tempfile.TemporaryDirectory(prefix="onnxprune-beyond-", dir=model.parent)
    command = [sys.executable, "-c", CHILD, str(model), str(Path(folder.name) / "out.onnx"), json.dumps(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stages, peaks, seconds = ["start"], {"start": 0}, {"start": 0.0}

    def listen() -> None:
        for line in process.stdout or ():
            stages.append(line.partition(":")[0].strip())  # behind the colon is how far it is

    listener = threading.Thread(target=listen)
    listener.start()
    last = start
    while process.poll() is None:
        stage, now = stages[-1], time.perf_counter()
        peaks[stage] = max(peaks.get(stage, 0), anonymous(process.pid))
        seconds[stage] = seconds.get(stage, 0.0) + now - last
        last = now
        time.sleep(0.02)
    listener.join()
    folder.cleanup()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"the run ended with status {process.returncode} in the stage {stages[-1]}")
    data = model.with_suffix(".data")
    size = model.stat().st_size + (data.stat().st_size if data.exists() else 0)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "file_bytes": size,
        "peak_anonymous_bytes": max(peaks.values()),
        "peak / file": round(max(peaks.values()) / size, 3),
        "cpu_seconds": round(cpu, 1),
        "cpu_seconds / GB": round(cpu / (size / 1e9), 1),
        "peak_by_stage / file": {stage: round(peak / size, 3) for stage, peak in peaks.items()},
        "seconds_by_stage": {stage: round(value, 1) for stage, value in seconds.items()},
    }


def jobs(types: list[str], gigabytes: float, runs: list[str], tokens: str) -> Iterator[tuple[str, str, str]]:
    """The name of each result, with its type and run."""
    for dtype in types:
        for run in runs:
            on = f", {tokens} tokens" if run == "2:4" else ""
            yield f"{gigabytes:g} GB in float32, {dtype}, {run}{on}", dtype, run


def main() -> None:
    """Do the runs that the output does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=2.7)
    parser.add_argument("--types", nargs="+", default=["float32", "float16"])
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--tokens", default="64x512")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made")
    parser.add_argument("--model", type=Path, help="measure this file instead, which may hold its weights itself")
    asked = parser.parse_args()
    results = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    if asked.model is not None:
        for run in asked.runs:
            if (label := f"{asked.model.name}, {run}") not in results:
                results[label] = measured(asked.model, RUNS[run])
                asked.output.write_text(json.dumps(results, indent=2) + "\n")
        return
    todo = [job for job in jobs(asked.types, asked.gigabytes, asked.runs, asked.tokens) if job[0] not in results]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for dtype in dict.fromkeys(job[1] for job in todo):
        with tempfile.TemporaryDirectory(prefix="onnxprune-beyond-", dir=asked.folder) as name:
            folder = Path(name)
            model = make_decoder(folder, asked.gigabytes, np.dtype(dtype))
            samples, length = map(int, asked.tokens.split("x"))
            ids = np.random.default_rng(1).integers(0, VOCABULARY, (samples, length))
            np.savez(folder / "tokens.npz", input_ids=ids)
            for label, _, run in (job for job in todo if job[1] == dtype):
                data = {"calibration": str(folder / "tokens.npz")} if run == "2:4" else {}
                results[label] = measured(model, {**RUNS[run], **data})
                asked.output.write_text(json.dumps(results, indent=2) + "\n")
                print(label, json.dumps(results[label], indent=2), flush=True)


if __name__ == "__main__":
    main()
