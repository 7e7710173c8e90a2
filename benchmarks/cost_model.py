"""How far estimates of latency are from what is measured, over random cuts of three networks.

    python benchmarks/cost_model.py --output benchmarks/results/cost_model.json

Every group of units is cut to a random count, all groups of a cut around the same level. The ratio of latency, after /
before, is estimated from the shapes alone and then measured in ONNX Runtime: CPU time of one thread, both models in
turn, the fastest rounds of the middle one of three pairs of sessions. Estimates:

    multiply-adds   their ratio
    built in        the figures of structure/figures.py
    tuned           figures that `onnxprune tune` measures on this machine at the beginning of this benchmark
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from exported import exported
from target_latency import NETWORKS

from onnxprune import model_io, runtime
from onnxprune.passes import RemoveUnits, Tidy
from onnxprune.pipeline.prepare import prepare
from onnxprune.runtime.tune import tune
from onnxprune.scoring import prunable_weights
from onnxprune.selection.rounding import kept_counts, step_of
from onnxprune.structure import costs
from onnxprune.structure.costs import Cost
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Ledger
from onnxprune.structure.machine import processor
from onnxprune.structure.structure import Structure


def random_cut(structure: Structure, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """The atoms that go, group by group."""
    level, gone = rng.uniform(0.2, 0.95), []
    for group in structure.groups:
        wanted = float(np.clip(level + rng.uniform(-0.35, 0.35), 0.1, 1)) * len(group)
        gone.append(group.atoms[: len(group) - nearest_count(structure, group, wanted)])
    return gone


def nearest_count(structure: Structure, group: Group, wanted: float) -> int:
    """The count nearest to what is wanted that a group may shrink to."""
    counts = kept_counts(len(group), step_of(structure, group, "auto"), 1)
    return min(counts, key=lambda count: abs(count - wanted))


def row(path: Path, estimates: Mapping[str, Cost], cuts: int) -> dict[str, Any]:
    """Mean errors of the estimates over cuts of one network, and each cut."""
    original, rng = model_io.load(path), np.random.default_rng(0)
    each: list[dict[str, float]] = []
    for _ in range(cuts):
        structure = prepare(original.clone())
        gone, weights, figures = random_cut(structure, rng), prunable_weights(structure), dict[str, float]()
        for name, cost in estimates.items():
            ledger = Ledger(structure, weights, structure.groups, 1, cost)
            whole = ledger.cost
            for atoms in gone:
                ledger.remove(atoms, limit=float("inf"))
            figures[name] = ledger.cost / whole
        RemoveUnits(structure, ledger.removed)(structure.model)
        Tidy()(structure.model)
        each.append({**figures, "measured": measured(original, structure.model)})
    errors = {name: float(np.mean([abs(cut[name] / cut["measured"] - 1) for cut in each])) for name in estimates}
    return {"mean relative error": errors, "cuts": each}


def measured(original: ir.Model, model: ir.Model) -> float:
    """The ratio of the fastest rounds, which other work on the machine slows least."""
    return runtime.measure_models(original, model, runtime.working_inputs(original)[0], settled=True).least_ratio


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--cuts", type=int, default=12)
    arguments = parser.parse_args()
    started = time.process_time()
    figures = tune()
    results: dict[str, Any] = {
        "processor": processor(), "onnxruntime": onnxruntime.__version__,
        "CPU seconds of tune": round(time.process_time() - started, 1),
        "figures": {"kinds": dict(figures.kinds), "block": figures.block, "step": figures.step},
    }  # fmt: skip
    estimates: dict[str, Cost] = {
        "multiply-adds": costs.macs, "built in": costs.latency, "tuned": partial(costs.latency, figures=figures)
    }  # fmt: skip
    for name in arguments.networks:
        results[name] = row(exported(name), estimates, arguments.cuts)
        print(name, json.dumps(results[name]["mean relative error"]), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
