"""CPU seconds to choose units of wide layers by cost, and to cut them: L pairs of layers, U hidden units each.

    python benchmarks/choosing.py            # ->  benchmarks/results/choosing.json

The time is that of `onnxprune.prune` without verification and latency, half of the parameters, from a model in memory.
The package is used through its public functions alone, so that PYTHONPATH may name a checkout of another commit; the
results of each commit are kept side by side.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from same_bytes import commit_of_package

import onnxprune

RESULTS = Path(__file__).parent / "results" / "choosing.json"
CASES = ((4, 4096), (4, 16384), (32, 8192), (32, 16384))
_DATA, _STREAM = 64, 16


def network(pairs: int, units: int) -> onnx.ModelProto:
    """MatMul, Relu, MatMul, `pairs` times: a stream of 16 numbers goes through hidden layers of `units`."""
    rng = np.random.default_rng(0)
    nodes, tensors, here = [], [], "x"
    for i in range(pairs):
        width = _STREAM if i else _DATA
        for name, shape in ((f"a{i}", (width, units)), (f"b{i}", (units, _STREAM))):
            tensors.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
        nodes += [
            helper.make_node("MatMul", [here, f"a{i}"], [f"h{i}"]),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"b{i}"], [f"y{i}"]),
        ]
        here = f"y{i}"
    x = helper.make_tensor_value_info("x", 1, [1, _DATA])
    y = helper.make_tensor_value_info(here, 1, [1, _STREAM])
    graph = helper.make_graph(nodes, "wide", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    """Measure every case once and write the results of this commit beside those of others."""
    commit = commit_of_package()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    seconds = results.setdefault(commit, {})
    for pairs, units in CASES:
        model = network(pairs, units)
        onnxprune.prune(network(1, 64), structure="channels", sparsity=0.5, verification=False, latency=False)
        started = time.process_time()
        onnxprune.prune(model, structure="channels", sparsity=0.5, verification=False, latency=False)
        seconds[f"{pairs} x {units}"] = round(time.process_time() - started, 2)
        print(commit, f"{pairs} x {units}", seconds[f"{pairs} x {units}"], flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
