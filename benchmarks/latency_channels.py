"""What removing half of the inner channels buys in ONNX Runtime, rounded and unrounded.

    python benchmarks/latency_channels.py --output benchmarks/results/latency_channels.json

Inner channels are all that do not run along the residual stream: in ResNet-50 the stem and both inner widths of every
block, in MobileNetV2 the expansions (and the first depthwise layer). Latency is thread CPU time on one thread, the
median of alternating rounds, as a ratio.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from exported import exported

from onnxprune import model_io, runtime
from onnxprune.graph import size
from onnxprune.passes import RemoveUnits, Tidy
from onnxprune.pipeline.prepare import prepare
from onnxprune.scoring import find_criterion, prunable_weights, unit_scores
from onnxprune.selection.rounding import RoundTo, kept_counts, step_of
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Ledger
from onnxprune.structure.structure import Structure


def inner_groups(structure: Structure) -> list[Group]:
    """Groups of channels that are not the residual stream: one convolution makes them, convolutions read them.

    Where a network filters by depth, only what is filtered: its expansions.
    """
    candidates = []
    for group in structure.groups:
        sites = [s for s in group.sites if s.value in structure.weights]
        depthwise = [s for s in sites if s.value.shape is not None and s.value.shape[1] == 1]
        makers = [s for s in sites if s.axis == 0 and s not in depthwise]
        if len(makers) == 1 and all(structure.weights[s.value].op_type == "Conv" for s in sites):
            candidates.append((group, bool(depthwise)))
    filtered = any(depthwise for _, depthwise in candidates)
    return [group for group, depthwise in candidates if depthwise or not filtered]


def half_of_each(structure: Structure, groups: Sequence[Group], scores: np.ndarray, round_to: RoundTo) -> np.ndarray:
    """Flags by atom id of the less important half of every group, to the nearest allowed count."""
    ledger = Ledger(structure, prunable_weights(structure), groups, floor=1)
    for group in groups:
        count = len(group)
        counts = kept_counts(count, step_of(structure, group, round_to), 1)
        kept = min(counts, key=lambda k: (abs(k - count / 2), k))
        order = group.atoms[np.argsort(scores[group.atoms], kind="stable")]
        ledger.remove(order[: count - kept], limit=ledger.prunable)
    return ledger.removed


def halved(path: Path, round_to: RoundTo) -> tuple[object, dict[str, object]]:
    """Return the model with half of every inner group removed, and its figures."""
    structure = prepare(model_io.load(path))
    weights = prunable_weights(structure)
    groups = inner_groups(structure)
    scores = unit_scores(structure, weights, groups, find_criterion("magnitude"), 0)
    removed = half_of_each(structure, groups, scores, round_to)
    model = structure.model
    RemoveUnits(structure, removed)(model)
    Tidy()(model)
    return model, {"groups": len(groups)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    for name in ("resnet50", "mobilenet_v2"):
        original = model_io.load(exported(name))
        feeds = runtime.working_inputs(original)[0]
        before = size.figures(original, runtime.concrete_shapes(original, feeds))
        for round_to in ("auto", "none"):
            model, row = halved(exported(name), round_to)
            after = size.figures(model, runtime.concrete_shapes(model, feeds))  # type: ignore[arg-type]
            sessions = [runtime.make_session(m, optimize="all", threads=1) for m in (original, model)]  # type: ignore[arg-type]
            latency = runtime.alternate(sessions[0], sessions[1], feeds, rounds=arguments.rounds)
            row |= {
                "parameters": after.parameters / before.parameters,
                "macs": (after.macs or 0) / (before.macs or 1),
                "latency": latency.ratio,
                "rounds": latency.rounds,
            }
            results[f"{name}, round_to={round_to}"] = row
            print(name, round_to, row)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
