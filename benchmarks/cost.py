"""What a whole run costs: time against loading, saving and one session; memory on a large model.

    python benchmarks/cost.py --output benchmarks/results/cost.json

Time: ``onnxprune resnet50.onnx --sparsity 0.5 --structure channels`` as a process of its own, without the measuring at
its end, against a process that does onnx.load, onnx.save and one ONNX Runtime session of the same file; in turn.
Memory: the peak of a whole run, verification included, on a 1.6 GB model with external data.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

BASELINE = """
import sys, onnx, onnxruntime
model = onnx.load(sys.argv[1])
onnx.save(model, sys.argv[2])
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""
OURS = """
import sys, json, onnxprune
result = onnxprune.prune(sys.argv[1], sparsity=0.5, structure="channels", verification=sys.argv[3] == "verify")
onnxprune.save(result, sys.argv[2], force=True)
print(json.dumps(result.seconds))
"""


def whole_runs(path: Path, rounds: int) -> dict[str, object]:
    """Time both processes in turn."""
    from exported import exported

    source = exported("resnet50")
    times: dict[str, list[float]] = {"baseline": [], "ours": [], "verified": []}
    for _ in range(rounds):
        for name, script, last in (("baseline", BASELINE, ""), ("ours", OURS, "no"), ("verified", OURS, "verify")):
            start = time.perf_counter()
            command = [sys.executable, "-c", script, str(source), str(path / f"{name}.onnx"), last]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "whole process / (load + save + session)": medians["ours"] / medians["baseline"],
        "with verification and latency": medians["verified"] / medians["baseline"],
        "rounds": rounds,
    }


def large_model(folder: Path, layers: int = 24, width: int = 4096) -> tuple[Path, int]:
    """Write a stack of MatMul and Relu with external data; return its path and size in bytes."""
    rng = np.random.default_rng(0)
    nodes, tensors, offset = [], [], 0
    with (folder / "large.data").open("wb") as data:
        for i in range(layers):
            weight = (rng.standard_normal((width, width), np.float32) / np.sqrt(width)).astype(np.float32)
            data.write(weight.tobytes())
            tensor = onnx.TensorProto(name=f"w{i}", dims=[width, width], data_type=onnx.TensorProto.FLOAT)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "large.data"), ("offset", offset), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            offset += weight.nbytes
            tensors.append(tensor)
            nodes += [
                helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"a{i}"]),
                helper.make_node("Relu", [f"a{i}"], [f"x{i + 1}"]),
            ]
    ends = [helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, [1, width]) for i in (0, layers)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    return path, offset


def memory(folder: Path, structure: str) -> dict[str, object]:
    """Return the peak memory of a whole run over the size of the model."""
    path, size = large_model(folder)
    command = [sys.executable, "-m", "onnxprune", str(path), "-s", "0.5", "--structure", structure, "--force", "--json"]
    child = os.fork()
    if child == 0:
        done = subprocess.run(command, stdout=subprocess.DEVNULL)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        (folder / "peak").write_text(json.dumps([done.returncode, peak]))
        os._exit(0)
    os.waitpid(child, 0)
    status, peak = json.loads((folder / "peak").read_text())
    return {"structure": structure, "status": status, "model bytes": size, "peak / model": peak / size}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave the large model out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, object] = {"time": whole_runs(Path(folder), arguments.rounds)} if arguments.rounds else {}
        print(results)
        if not arguments.no_memory:
            results["memory"] = [memory(Path(folder), structure) for structure in ("channels", "weights")]
            print(results["memory"])
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
