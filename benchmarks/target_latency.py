"""Does ``--target-latency 0.5x`` land where it should, and what does the same share of multiply-adds buy otherwise?

    python benchmarks/target_latency.py --output benchmarks/results/target_latency.json

For each network (sizes of ImageNet, random weights; speed does not depend on them):

    target      cut to the target; latency measured again afterwards
    uniform     the same share of multiply-adds by the same share of every group, counts rounded as by default
    unrounded   the same, counts as they fall
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from exported import exported

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.pipeline.result import Result

NETWORKS = ("resnet18", "mobilenet_v2", "resnet50")


def row(original: ir.Model, result: Result) -> dict[str, Any]:
    """What came out of a run."""
    assert result.verdict is not None and result.target is not None
    before, after = result.verdict.before, result.verdict.after
    latency = runtime.measure_models(original, result.model, runtime.working_inputs(original)[0], settled=True)
    return {
        "latency": latency.ratio,
        "macs": (after.macs or 0) / (before.macs or 1),
        "parameters": after.parameters / before.parameters,
        "sparsity": result.sparsity,
        "tries": len(result.target.tries),
    }


def aimed(path: Path, wanted: float) -> dict[str, Any]:
    """Cut to the target, then to its multiply-adds in two other ways."""
    original = model_io.load(path)
    run = partial(onnxprune.prune, path, structure="channels", latency=False)
    out = {"target": row(original, run(target_latency=wanted))}
    share = out["target"]["macs"]
    out["uniform"] = row(original, run(target_macs=share, allocation="uniform"))
    out["unrounded"] = row(original, run(target_macs=share, allocation="uniform", round_to="none"))
    return out


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--target", type=float, default=0.5)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"wanted": arguments.target}
    for name in arguments.networks:
        path = exported(name)
        results[name] = aimed(path, arguments.target)
        print(name, json.dumps(results[name], indent=1), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
