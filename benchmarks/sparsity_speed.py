"""What zeros buy in ONNX Runtime on a CPU: latency and size after / before, on one model.

    python benchmarks/sparsity_speed.py --output benchmarks/results/sparsity_speed.json

Latency is thread CPU time on one thread, the median of rounds that alternate with the dense model, as a ratio; the
first row is the dense model against itself and tells the noise. Zipped is the file deflated at level 9, packed the
file with ``--pack``. What removed channels buy is measured in latency_channels.py.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from exported import exported

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.packing import pack


def sparse_models(path: Path) -> Iterator[tuple[str, ir.Model]]:
    """Yield the dense model and each sparse form of it."""
    yield "dense, again", model_io.load(path)
    for name, structure, sparsity in (
        ("90 % zeros, anywhere", "weights", 0.9),
        ("2:4", "2:4", None),
        ("75 % zeros, in blocks of 1x4", "block:1x4", 0.75),
    ):
        amount = {} if sparsity is None else {"sparsity": sparsity}
        yield name, onnxprune.prune(path, verification=False, structure=structure, **amount).model


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="resnet18, resnet50 or mobilenet_v2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    path = exported(arguments.model)
    original = model_io.load(path)
    feeds = runtime.working_inputs(original)[0]
    dense = runtime.make_session(original, optimize="all", threads=1)
    size = model_io.serialized_size(original)
    rows: dict[str, object] = {}
    for name, model in sparse_models(path):
        session = runtime.make_session(model, optimize="all", threads=1)
        latency = runtime.alternate(dense, session, feeds, rounds=arguments.rounds)
        content = model_io.to_proto(model).SerializeToString()
        rows[name] = {
            "latency": latency.ratio,
            "file": len(content) / size,
            "zipped": len(zlib.compress(content, 9)) / size,
            "packed": model_io.serialized_size(pack(model)[0]) / size,
        }
        print(name, rows[name], flush=True)
    if arguments.output:
        result = {"model": arguments.model, "rounds": arguments.rounds, "after / before": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
