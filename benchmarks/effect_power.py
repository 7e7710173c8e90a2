"""To which power measured effects are added when units are divided among groups: scores by power and temperature.

    python benchmarks/effect_power.py --data-root DATA --work build/recovery_mnist --digits
    python benchmarks/effect_power.py --data-root DATA --mobilenet mobilenet_v2_imagenet.onnx --minilm minilm_l6.onnx

Networks, calibration samples and scores are those of `units.py`, cut to shares of their multiply-adds with closed forms
alone. A power of 1 at temperature 1 adds divergences as they are. Results are benchmarks/results/effect_power.json:
what is there already is not measured again. `--table` prints means over draws.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from single_weights import Images, Sentences
from units import Digits, Network, Pictures, keep

from onnxprune import model_io
from onnxprune.pipeline.run import prune
from onnxprune.runtime.stream import effects

RESULTS = Path(__file__).parent / "results" / "effect_power.json"
SETTINGS = ((1.0, 1.0), (1.0, 3.0), (0.85, 3.0), (0.7, 3.0), (0.6, 3.0), (0.5, 3.0))
"""Power and temperature."""
SHARES = (0.7, 0.5)


def entries_of(network: Network, draws: Sequence[int], done: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what is missing of the results of some networks."""
    keys = ("network", "share", "power", "temperature", "draw")
    known = {tuple(entry[key] for key in keys) for entry in done}
    for label, path in network.paths.items():
        model = model_io.load_any(path)
        for key in ((label, s, *setting, draw) for s in SHARES for draw in draws for setting in SETTINGS):
            if key in known:
                continue
            _, share, effects.POWER, effects.TEMPERATURE, draw = key
            result = prune(
                path, calibration=network.calibration(model, draw), latency=False, structure="channels",
                target_macs=share,
            )  # fmt: skip
            yield dict(zip(keys, key, strict=True)) | {"score": round(network.score(result.model), 4)}


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Means over draws: a row for each network and share."""
    lines = ["network | share | " + " | ".join(f"{power:g} at {t:g}" for power, t in SETTINGS)]
    for label, share in dict.fromkeys((e["network"], e["share"]) for e in entries):
        cells = []
        for setting in SETTINGS:
            scores = [
                e["score"] for e in entries
                if (e["network"], e["share"], e["power"], e["temperature"]) == (label, share, *setting)
            ]  # fmt: skip
            cells.append(f"{np.mean(scores):.4g}" if scores else "")
        lines.append(f"{label} | {share:g} | " + " | ".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and write it after every run; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of imagenet_1000/, stsb/, fashion_mnist/")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, BatchNorm folded")
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2")
    parser.add_argument("--work", type=Path, help="folder of the trained ResNets; without it they are left out")
    parser.add_argument("--digits", action="store_true", help="the networks of models/")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2], help="of the calibration data")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    root = arguments.data_root
    networks: Sequence[Callable[[], Network] | None] = (
        Digits if arguments.digits else None,
        arguments.work and (lambda: Images(root, arguments.work)),
        arguments.mobilenet and (lambda: Pictures(root, arguments.mobilenet)),
        arguments.minilm and (lambda: Sentences(root, arguments.minilm)),
    )
    entries = json.loads(RESULTS.read_text())["entries"] if RESULTS.exists() else []
    for make in networks if not arguments.table else ():
        if make:
            keep(RESULTS, entries, entries_of(make(), arguments.draws, list(entries)))
    print(table(entries))


if __name__ == "__main__":
    main()
