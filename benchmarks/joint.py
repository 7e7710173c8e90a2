"""One latency target, four ways to it: channels, tiles, residual blocks, and all of them in competition.

MobileNetV2 is measured on 666 ImageNet pictures (top-1 in percent) and calibrated on the 334 others, MiniLM on the STS
test set (Spearman's rank correlation) and calibrated on 512 sentences; no labels are used. Latency is after / before
of one picture, or of 128 tokens, on one thread, measured again after the search. CPU seconds are those of the whole
run: the competition makes all candidates.

    python benchmarks/joint.py --data-root DATA --mobilenet mobilenet_v2_imagenet.onnx --minilm minilm_l6.onnx

Results are benchmarks/results/joint.json: what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from single_weights import Sentences
from units import Pictures

from onnxprune import model_io
from onnxprune.errors import OnnxPruneError
from onnxprune.pipeline.run import prune
from onnxprune.runtime import measure_models

RESULTS = Path(__file__).parent / "results" / "joint.json"
STRUCTURES = ("channels", "tiles", "blocks", "joint")
TARGETS = {"mobilenet-v2": (0.7,), "minilm": (0.7,)}


def measured(network: Pictures | Sentences, label: str, structure: str, target: float) -> dict[str, Any]:
    """One run."""
    path = network.paths[label]
    original = model_io.load_any(path)
    calibration = network.calibration(original, 0)
    shapes = [f"{name}:{'x'.join(map(str, (1, *rows.shape[1:])))}" for name, rows in calibration.items()]
    entry: dict[str, Any] = {"network": label, "structure": structure, "target": target}
    started = time.process_time()
    try:
        result = prune(
            path, structure=structure, target_latency=target, calibration=calibration, reading={"input_shape": shapes}
        )
    except OnnxPruneError as error:
        return entry | {"failed": str(error)}
    seconds = round(time.process_time() - started, 1)
    feeds = {name: rows[:1] for name, rows in calibration.items()}
    latency = measure_models(original, result.model, feeds, settled=True)
    return entry | {
        "latency": round(latency.ratio, 3),
        "score": round(network.score(result.model), 4),
        "sparsity": round(result.sparsity, 4),
        "kept": result.recipe.structure,
        "blocks": len(result.blocks),
        "seconds": seconds,
        "notes": [note for note in result.notes if note.startswith("--")],
    }


def main() -> None:
    """Measure what is missing and write it after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder of imagenet_1000/ and stsb/")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, BatchNorm folded")
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2")
    parser.add_argument("--structures", nargs="+", default=STRUCTURES)
    parser.add_argument("--targets", nargs="+", type=float, help="only these latencies")
    arguments = parser.parse_args()
    networks: dict[str, Pictures | Sentences] = {}
    if arguments.mobilenet:
        networks["mobilenet-v2"] = Pictures(arguments.data_root, arguments.mobilenet)
    if arguments.minilm:
        networks["minilm"] = Sentences(arguments.data_root, arguments.minilm)
    entries = json.loads(RESULTS.read_text())["entries"] if RESULTS.exists() else []
    done = {(e["network"], e["structure"], e["target"]) for e in entries}
    for label, network in networks.items():
        if (label, "dense", 1.0) not in done:
            score = network.score(model_io.load_any(network.paths[label]))
            entries.append({"network": label, "structure": "dense", "target": 1.0, "score": round(score, 4)})
        for target in arguments.targets or TARGETS[label]:
            for structure in arguments.structures:
                if (label, structure, target) in done:
                    continue
                entries.append(measured(network, label, structure, target))
                print(entries[-1], flush=True)
                RESULTS.write_text(json.dumps({"entries": entries}, indent=1) + "\n")


if __name__ == "__main__":
    main()
