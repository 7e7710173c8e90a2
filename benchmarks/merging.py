"""Neuron merging without data: does it help? On the models of this repository, and on real ones where there are some.

Whole units go by magnitude; outputs are compared with the dense model's on held-out inputs, or on random ones for
models without any, and accuracy is measured where there are labels.

    python benchmarks/merging.py                  # the models of this repository
    python benchmarks/merging.py MODEL.onnx ...   # others, measured on random inputs

Results are benchmarks/results/merging.json; models in which no unit can be merged have no row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.data.batches import batches
from onnxprune.errors import NothingToPrune
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.run import prune
from onnxprune.runtime.statistics import output_error, shadow

HERE = Path(__file__).resolve().parent
SPARSITIES = (0.3, 0.5)


def measure(path: Path, data: dict[str, np.ndarray] | None, sparsity: float) -> dict[str, Any] | None:
    """One row; None where merging has nothing to do."""
    dense = prepare(model_io.load_any(path)).model
    plain, merged = (
        prune(path, structure="channels", sparsity=sparsity, round_to="none", recover=r, verification=False)
        for r in ("no", "merge")
    )
    done = merged.recovered
    if done is None or not done["steps"]:
        return None
    counts = [s["detail"].split()[:3:2] for s in done["steps"]]
    inputs = data or runtime.working_inputs(dense, seed=0, count=1, session=runtime.make_session(dense))[0]
    row: dict[str, Any] = {"model": path.name, "sparsity": sparsity}
    row["merged"] = f"{sum(int(m) for m, _ in counts)} of {sum(int(n) for _, n in counts)}"
    for name, result in (("plain", plain), ("merged", merged)):
        feeds = batches(dense, {k: v for k, v in inputs.items() if k != "label"})
        outputs = [str(v.name) for v in dense.graph.outputs]
        row[f"{name} error"] = round(output_error(shadow(dense, result.model), feeds, outputs), 4)
        row[f"{name} accuracy"] = accuracy(result.model, data) if data else None
    return row


def accuracy(model: ir.Model, data: dict[str, np.ndarray]) -> float:
    """The share of samples whose largest output is at their label."""
    feeds = {k: v for k, v in data.items() if k != "label"}
    (scores,) = runtime.run(runtime.make_session(model), feeds).values()
    return float((scores.argmax(1) == data["label"]).mean())


def main() -> None:
    """Measure the models given, and keep the rows of others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", help="by default those of the repository")
    args = parser.parse_args()
    results = HERE / "results" / "merging.json"
    rows = json.loads(results.read_text())["rows"] if results.exists() else []
    for path in args.models or sorted((HERE.parent / "models").glob("*.onnx")):
        beside = path.with_suffix(".npz")
        data = dict(np.load(beside)) if beside.exists() else None
        rows = [row for row in rows if row["model"] != path.name]
        for sparsity in SPARSITIES:
            try:
                row = measure(path, data, sparsity)
            except NothingToPrune:
                row = None
            print(json.dumps(row) if row else f"{path.name}: no unit can be merged at {sparsity:.0%}", flush=True)
            rows += [row] if row else []
        results.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
