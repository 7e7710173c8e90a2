"""Does ``--target-latency 0.5x`` land where it should, and what does the same share of multiply-adds buy otherwise?

    python benchmarks/target_latency.py --output benchmarks/results/target_latency.json

For each network (sizes of ImageNet, random weights; speed does not depend on them):

    target      cut to the target; latency measured again afterwards, in alternating runs of its own: the ratio
                of the medians, and of the fastest rounds, which other work on the machine disturbs least
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


def ratio(original: ir.Model, model: ir.Model, rounds: int) -> runtime.Latency:
    """Latency of a model beside that of the original."""
    feeds = runtime.working_inputs(original)[0]
    sessions = [runtime.make_session(m, optimize="all", threads=1) for m in (original, model)]
    return runtime.alternate(sessions[0], sessions[1], feeds, rounds=rounds)


def row(original: ir.Model, result: Result, rounds: int) -> dict[str, Any]:
    """What came out of a run."""
    assert result.verdict is not None and result.target is not None
    before, after = result.verdict.before, result.verdict.after
    measured = ratio(original, result.model, rounds)
    return {
        "latency": measured.ratio,
        "latency of the fastest rounds": measured.least_ratio,
        "macs": (after.macs or 0) / (before.macs or 1),
        "parameters": after.parameters / before.parameters,
        "sparsity": result.sparsity,
        "tries": len(result.target.tries),
    }


def aimed(path: Path, wanted: float, rounds: int) -> dict[str, Any]:
    """Cut to the target, then to its multiply-adds in two other ways."""
    original = model_io.load(path)
    run = partial(onnxprune.prune, path, structure="channels", latency=False)
    out = {"target": row(original, run(target_latency=wanted), rounds)}
    share = out["target"]["macs"]
    out["uniform"] = row(original, run(target_macs=share, allocation="uniform"), rounds)
    out["unrounded"] = row(original, run(target_macs=share, allocation="uniform", round_to="none"), rounds)
    return out


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"wanted": arguments.target, "rounds": arguments.rounds}
    for name in arguments.networks:
        path = exported(name)
        results[name] = aimed(path, arguments.target, arguments.rounds)
        print(name, json.dumps(results[name], indent=1), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
