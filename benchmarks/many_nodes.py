"""How long a graph of many nodes takes to inspect, in CPU seconds a node: it should not grow with the graph.

    python benchmarks/many_nodes.py [--nodes 2000 8000 32000] [--output benchmarks/results/many_nodes.json]

The graph is a chain of MatMul, Add, Relu and Mul with weights of 8 x 8. Each size runs in a process of its own. With
`--tree FOLDER` the package of another working tree is measured in the same run, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

INSPECT = """
import sys, time, onnxprune
onnxprune.inspect  # imported before the clock starts
start = time.process_time()
onnxprune.inspect(sys.argv[1])
print(time.process_time() - start)
"""
WIDTH = 8


def chain(nodes: int, path: Path) -> None:
    """Write a chain of so many nodes."""
    rng = np.random.default_rng(0)
    made, weights = [], []
    for i in range(nodes // 4):
        matrix, shift = rng.standard_normal((WIDTH, WIDTH), np.float32), rng.standard_normal(WIDTH, np.float32)
        weights += [numpy_helper.from_array(matrix, f"w{i}"), numpy_helper.from_array(shift, f"b{i}")]
        made += [
            helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"]),
            helper.make_node("Mul", [f"r{i}", f"b{i}"], [f"x{i + 1}"]),
        ]
    ends = [helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, [1, WIDTH]) for i in (0, nodes // 4)]
    graph = helper.make_graph(made, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def seconds(path: Path, tree: Path) -> float:
    """CPU seconds of one inspection by the package of a working tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INSPECT, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=path.parent)
    return float(done.stdout)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[2000, 8000, 32000])
    parser.add_argument("--tree", type=Path, help="a working tree of another commit, to compare with")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for nodes in arguments.nodes:
            path = Path(folder) / "chain.onnx"
            chain(nodes, path)
            row = {"nodes": nodes, "seconds": round(seconds(path, here), 2)}
            if arguments.tree is not None:
                row["seconds of the other tree"] = round(seconds(path, arguments.tree.resolve()), 2)
            print(row, flush=True)
            results.append(row)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
