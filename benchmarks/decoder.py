"""Perplexity of the trained decoder in models/ after each way of pruning, without labels and without training.

    python benchmarks/decoder.py             # goes on where it ended
    python benchmarks/decoder.py --only 2:4

Every case gets the same calibration text, 128 rows of 128 tokens of what the model was trained on, and is measured on
The Tempest, which it never saw. Single weights and 2:4 compare within each layer, as the papers do (Wanda within each
output). Structured cases cut the width (neurons, heads, head sizes), the depth (attention and MLP halves of layers), or
both: half of the share in depth, then the rest in neurons, as 2SSP does. Shares are of all weights but the embedding.
Recovery fits what is left in closed form; `no` shows what a choice alone is worth. int4 rounds the weights to 4 bits
in blocks, each to the nearest level or by the calibration text. CPU seconds are those of the pruning alone.

Results are benchmarks/results/decoder.json and decoder.md: what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune import model_io
from onnxprune.data.readers import open_data
from onnxprune.passes import Normalise
from onnxprune.pipeline.run import prune
from onnxprune.recipe.training import DataSettings
from onnxprune.structure.analysis import analyse
from onnxprune.structure.weights import prunable_weights, total_size
from onnxprune.verification.evaluate import evaluate

MODELS = Path(__file__).resolve().parents[1] / "models"
NAME = "shakespeare_decoder"
RESULTS = Path(__file__).parent / "results" / "decoder.json"
READING = {"tokenizer": MODELS / f"{NAME}.tokenizer.json", "sequence_length": 128}
SAMPLES = 128

Settings = Mapping[str, Any]

_ZEROS: Mapping[str, Settings] = {
    "magnitude": {"criterion": "magnitude", "recover": "no", "allocation": "uniform"},
    "Wanda": {"criterion": "wanda", "recover": "no"},
    "SparseGPT": {"criterion": "magnitude", "recover": "sparsegpt", "allocation": "uniform"},
    "ALPS": {"criterion": "magnitude", "recover": "alps", "allocation": "uniform"},
}
_PATTERNS: Mapping[str, Settings] = {
    "50 %": {"structure": "weights", "sparsity": 0.5},
    "2:4": {"structure": "2:4"},
}
_WIDTH: Settings = {"structure": "channels", "interface": "narrow", "round_to": "none"}
_NEURONS: Settings = {"structure": "channels", "kinds": "neurons", "round_to": "none"}
_DEPTH: Settings = {"structure": "blocks"}


def cases() -> dict[str, tuple[Settings, ...]]:
    """The runs of each case, one after the other."""
    made: dict[str, tuple[Settings, ...]] = {}
    for pattern, shape in _PATTERNS.items():
        for method, settings in _ZEROS.items():
            options = {k: v for k, v in settings.items() if k != "allocation" or pattern != "2:4"}
            made[f"{pattern}, {method}"] = ({**shape, **options},)
    made["int4, nearest"] = ({"sparsity": 0, "recover": "no", "quantize": "int4", "calibration": None},)
    made["int4"] = ({"sparsity": 0, "recover": "no", "quantize": "int4"},)
    made["50 %, ALPS, int4"] = ({**made["50 %, ALPS"][0], "quantize": "int4"},)
    for share in (0.2, 0.3):
        left, half = {"left": 1 - share}, {"left": 1 - share / 2}
        made[f"{share:.0%}, width"] = ({**_WIDTH, **left},)
        made[f"{share:.0%}, depth"] = ({**_DEPTH, **left},)
        made[f"{share:.0%}, both"] = ({**_DEPTH, **half}, {**_NEURONS, **left})
        made[f"{share:.0%}, width by magnitude, no recovery"] = (
            {**_WIDTH, **left, "criterion": "magnitude", "recover": "no"},
        )
    return made


def run(runs: Sequence[Settings]) -> dict[str, Any]:
    """Prune and measure one case."""
    original = model_io.load(MODELS / f"{NAME}.onnx")
    model, started = original, time.process_time()
    for settings in runs:
        settings = asked(settings, model, weights_left(original))
        told: Settings = {"calibration": MODELS / f"{NAME}.calibration.txt", "calibration_samples": SAMPLES,
                          "reading": READING}  # fmt: skip
        if "calibration" in settings:  # none
            told, settings = {}, {name: value for name, value in settings.items() if name != "calibration"}
        result = prune(model, verification=False, **told, **settings)
        model = result.model
    seconds = time.process_time() - started
    left = weights_left(model) if runs[0].get("structure") in ("channels", "blocks") else 1 - result.sparsity
    return {
        "perplexity": round(perplexity(model), 3),
        "left": round(left / (weights_left(original) if left > 1 else 1), 4),
        "seconds": round(seconds, 1),
    }


def asked(settings: Settings, model: ir.Model, total: float) -> Settings:
    """Say the share of all weights that should be left as a share of what can go."""
    if "left" not in settings:
        return settings
    others = {name: value for name, value in settings.items() if name != "left"}
    looked_at = prune(model, **{**others, "sparsity": 0.01, "criterion": "magnitude", "recover": "no"}, latency=False,
                      verification=False)  # fmt: skip
    return {**others, "sparsity": (weights_left(model) - settings["left"] * total) / looked_at.prunable}


def weights_left(model: ir.Model) -> float:
    """How many prunable weights there are."""
    copy = model.clone()
    Normalise()(copy)
    return float(total_size(prunable_weights(analyse(copy))))


def perplexity(model: ir.Model) -> float:
    """On the play that was held out."""
    data = open_data(model, MODELS / f"{NAME}.held_out.txt", DataSettings(**READING))  # type: ignore[arg-type]
    return evaluate(model, data, "perplexity")[1]


def read() -> dict[str, Any]:
    """All results so far, by case."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return results


def write(results: Mapping[str, Any]) -> None:
    """Write all results, whole or not at all, and the table."""
    order = ["dense", *cases()]
    ordered = {name: results[name] for name in order if name in results}
    beside = RESULTS.with_suffix(".partial")
    beside.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    beside.replace(RESULTS)
    lines = ["# Perplexity of the trained decoder", "",
             "Written by `python benchmarks/decoder.py`, whose docstring says how each line is made.", "",
             "| case | perplexity | weights left | CPU seconds |", "|---|---|---|---|"]  # fmt: skip
    lines += [f"| {name} | {row['perplexity']:.2f} | {row['left']:.0%} | {row['seconds']:.0f} |"
              for name, row in ordered.items()]  # fmt: skip
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--again", action="store_true", help="measure these anew")
    told = parser.parse_args()
    for name, runs in {"dense": (), **cases()}.items():
        if told.only not in name or (name in read() and not told.again):
            continue
        if runs:
            row = run(runs)
        else:
            dense = perplexity(model_io.load(MODELS / f"{NAME}.onnx"))
            row = {"perplexity": round(dense, 3), "left": 1.0, "seconds": 0.0}
        print(name, json.dumps(row), flush=True)
        write({**read(), name: row})


if __name__ == "__main__":
    main()
