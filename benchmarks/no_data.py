"""Whole units without any data: by magnitude alone, with noise, with inputs made up from the model, with real ones.

The networks are those of `units.py`. `no data` is a run without calibration data; `noise` and `synthetic` are inputs
made up from the model, without and with gradient steps (``--calibration synthetic``); `real` are the calibration
samples of `units.py`. Scores are accuracy in percent on held-out samples, of MobileNetV2 top-1 on 666 pictures. Drawn
inputs and samples are drawn three times.

    python benchmarks/no_data.py --data-root DATA --work build/recovery_mnist
    python benchmarks/no_data.py --data-root DATA --mobilenet mobilenet_v2_imagenet.onnx --draws 0

Results are benchmarks/results/no_data.json: what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from single_weights import Images
from units import Digits, Network, Pictures, keep

from onnxprune import model_io
from onnxprune.pipeline.run import prune
from onnxprune.synthetic.samples import made_up

RESULTS = Path(__file__).parent / "results" / "no_data.json"
CASES: Sequence[Mapping[str, Any]] = ({"target_macs": 0.8}, {"sparsity": 0.75})
"""Eight tenths of the multiply-adds left; about half of the units gone, which is three quarters of the parameters."""
WAYS = ("no data", "noise", "synthetic", "real")


def inputs_of(way: str, network: Network, model: ir.Model, draw: int) -> Mapping[str, Any] | None:
    """The calibration inputs of a way."""
    if way == "no data":
        return None
    if way == "real":
        return network.calibration(model, draw)
    return made_up(model, 1024, draw, gradients=way == "synthetic").inputs


def entries_of(
    network: Network, draws: Sequence[int], done: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield what is missing of the results, measured."""
    known = {(e["network"], e["way"], e["case"], e["draw"]) for e in done}
    for label, path in network.paths.items():
        model = model_io.load_any(path)
        if (label, "dense", "dense", 0) not in known:
            score = round(network.score(model), 2)
            yield {"network": label, "way": "dense", "case": "dense", "draw": 0, "score": score}
        for way in WAYS:
            for draw in draws if way != "no data" else [0]:
                missing = {_name(case): case for case in cases if (label, way, _name(case), draw) not in known}
                if not missing:
                    continue
                started = time.process_time()
                inputs = inputs_of(way, network, model, draw)
                drawing = time.process_time() - started
                for name, case in missing.items():
                    started = time.process_time()
                    result = prune(path, structure="channels", calibration=inputs, latency=False, **case)
                    seconds = round(time.process_time() - started + drawing, 1)
                    score = round(network.score(result.model), 2)
                    yield {"network": label, "way": way, "case": name, "draw": draw, "score": score, "seconds": seconds}


def _name(case: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in case.items())


def summary(entries: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown: mean and deviation of each way."""
    lines = ["| network | dense | left | no data | noise | synthetic | real |", "|---|---|---|---|---|---|---|"]
    for label in dict.fromkeys(e["network"] for e in entries):
        dense = next(e["score"] for e in entries if (e["network"], e["way"]) == (label, "dense"))
        for case in dict.fromkeys(e["case"] for e in entries if e["network"] == label and e["case"] != "dense"):
            cells = []
            for way in WAYS:
                key = (label, way, case)
                scores = [e["score"] for e in entries if (e["network"], e["way"], e["case"]) == key]
                spread = f" ± {np.std(scores):.1f}" if len(scores) > 1 else ""
                cells.append(f"{np.mean(scores):.1f}{spread}" if scores else "")
            lines.append(f"| {label} | {dense:.1f} | {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and write it after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder of imagenet_1000/, fashion_mnist/")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, BatchNorm folded")
    parser.add_argument("--work", type=Path, help="folder of the trained ResNets; without it they are left out")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2], help="of the inputs")
    arguments = parser.parse_args()
    networks: dict[str, Callable[[], Network] | None] = {
        "digits": Digits,
        "fashion": arguments.work and (lambda: Images(arguments.data_root, arguments.work)),
        "mobilenet": arguments.mobilenet and (lambda: Pictures(arguments.data_root, arguments.mobilenet)),
    }
    entries = json.loads(RESULTS.read_text())["entries"] if RESULTS.exists() else []
    for name, make in networks.items():
        cases = CASES[:1] if name == "mobilenet" else CASES
        if make:
            keep(RESULTS, entries, entries_of(make(), arguments.draws, list(entries), cases))
    print(summary(entries))


if __name__ == "__main__":
    main()
