"""Whole units without labels: MobileNetV2 on ImageNet pictures, MiniLM on STS, a ResNet on Fashion-MNIST, models/.

MobileNetV2 is calibrated on the 334 pictures whose index is a multiple of 3 and measured on the other 666 (top-1 in
percent); none of the measured classes is seen. MiniLM gets 512 sentences, its score is Spearman's rank correlation on
the test set. The ResNet is that of `recovery_mnist.py`, trained on first use; its score is test accuracy in percent
with 1,024 training images, at three quarters of its parameters gone, which is half of its units. The networks of
models/ get 512 of their training samples; their score is accuracy in percent on the 360 held out. These small ones are
also cut in 2, 5 and 10 steps. CPU seconds are those of the whole run.

    python benchmarks/units.py --data-root DATA --mobilenet mobilenet_v2_imagenet.onnx --minilm minilm_l6.onnx

Results are benchmarks/results/units.json: what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from PIL import Image
from single_weights import Images, Sentences

from onnxprune import model_io
from onnxprune.pipeline.run import prune
from onnxprune.runtime import make_session

RESULTS = Path(__file__).parent / "results" / "units.json"
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
MODELS = Path(__file__).parent.parent / "models"
STEPS = (1, 2, 5, 10)

CASES: dict[str, Sequence[Mapping[str, Any]]] = {
    "mobilenet": [{"target_macs": share} for share in (0.8, 0.7, 0.6, 0.5)],
    "minilm": [
        *({"sparsity": share} for share in (0.3, 0.5)),
        {"kinds": ("heads",), "sparsity": 0.1111},  # a third of the heads, whose matrices are a third of all weights
        {"structure": "layers", "sparsity": 0.3333},  # two of the six layers
    ],
    "fashion": [
        {"sparsity": 0.748, "round_to": "none"},
        *({"sparsity": 0.748, "iterations": steps} for steps in STEPS),
        *({"sparsity": 0.748, "round_to": "none", "iterations": steps} for steps in STEPS[1:]),
    ],
    "digits": [{"sparsity": 0.7, "iterations": steps} for steps in STEPS],
}


class Pictures:
    """MobileNetV2 and the pictures of ImageNet."""

    def __init__(self, root: Path, path: Path) -> None:
        """Take the folder with imagenet_1000/ and the model's file."""
        self.paths = {"mobilenet-v2": path}
        self._folder = root / "imagenet_1000"

    def calibration(self, model: ir.Model, draw: int) -> dict[str, npt.NDArray[Any]]:
        """The pictures whose index is a multiple of 3; other draws leave out a tenth of them."""
        chosen = np.arange(0, 1000, 3)
        if draw:
            chosen = np.sort(np.random.default_rng(draw).permutation(chosen)[:300])
        return {str(model.graph.inputs[0].name): self._pictures(chosen)}

    def score(self, model: ir.Model) -> float:
        """Top-1 in percent on the other pictures."""
        session, right = make_session(model, optimize="all"), 0
        others = np.array([i for i in range(1000) if i % 3])
        for start in range(0, len(others), 37):
            chosen = others[start : start + 37]
            (scores,) = session.run(None, {session.get_inputs()[0].name: self._pictures(chosen)})
            right += int((scores.argmax(1) == chosen).sum())
        return 100 * right / len(others)

    def _pictures(self, chosen: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        read = [np.asarray(self._read(self._folder / f"{i:03d}.jpg")) for i in chosen.tolist()]
        return (np.stack(read).transpose(0, 3, 1, 2).astype(np.float32) / 255 - _MEAN) / _DEVIATION

    def _read(self, path: Path) -> Image.Image:
        return Image.open(path).convert("RGB")


class Digits:
    """The networks of models/."""

    def __init__(self) -> None:
        """Find them."""
        self.paths = {path.stem: path for path in sorted(MODELS.glob("digits_*.onnx"))}

    def calibration(self, model: ir.Model, draw: int) -> dict[str, npt.NDArray[Any]]:
        """Training samples."""
        images = np.load(MODELS / "digits_train.npz")["image"]
        return {str(model.graph.inputs[0].name): images[np.random.default_rng(draw).permutation(len(images))[:512]]}

    def score(self, model: ir.Model) -> float:
        """Accuracy in percent on the samples held out, which are the same for all of them."""
        held, session = np.load(MODELS / "digits_mlp.npz"), make_session(model)
        (scores,) = session.run(None, {session.get_inputs()[0].name: held["image"]})
        return 100 * float((scores.argmax(1) == held["label"]).mean())


Network = Pictures | Sentences | Images | Digits


def entries_of(
    name: str,
    network: Network,
    draws: Sequence[int],
    done: Sequence[Mapping[str, Any]],
    effort: str = "low",
) -> Iterator[dict[str, Any]]:
    """Yield what is missing of the results, measured."""
    for label, path in network.paths.items():
        model = model_io.load_any(path)
        if not any((e["network"], e["case"]) == (label, "dense") for e in done):
            yield {"network": label, "case": "dense", "draw": 0, "score": round(network.score(model), 4)}
        for settings in CASES[name]:
            settings = {**settings} if effort == "low" else {**settings, "effort": effort}
            case = ", ".join(f"{key} {value}" for key, value in settings.items())
            for draw in draws:
                if any((e["network"], e["case"], e["draw"]) == (label, case, draw) for e in done):
                    continue
                calibration = network.calibration(model, draw)
                started = time.process_time()
                asked = {"structure": "channels", **settings}
                result = prune(path, calibration=calibration, latency=False, progress=_tell, **asked)
                seconds = round(time.process_time() - started, 1)
                score = round(network.score(result.model), 4)
                entry = {"network": label, "case": case, "draw": draw, "score": score, "seconds": seconds}
                print(
                    *(step for step in (result.recovered or {}).get("steps", ()) if step["method"] == "align"), sep="\n"
                )
                yield entry | {"sparsity": round(result.sparsity, 4), "difference": _difference(result)}


def keep(results: Path, entries: list[dict[str, Any]], new: Iterator[dict[str, Any]]) -> None:
    """Add new entries as they are measured, and write all of them, a line each, after every one."""
    for entry in new:
        entries.append(entry)
        lines = ",\n".join(" " + json.dumps(each) for each in entries)
        results.write_text(f'{{"entries": [\n{lines}\n]}}\n')
        print(entry, flush=True)


def _difference(result: Any) -> float | None:
    """How far removed is from masked, before anything was fitted."""
    return None if result.verdict is None else result.verdict.removed_vs_masked


def _tell(stage: str) -> None:
    """Say how long an alignment takes and where it stands."""
    if "align" in stage:
        print(stage, flush=True)


def main() -> None:
    """Measure what is missing and write it after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder of imagenet_1000/, stsb/, fashion_mnist/")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, BatchNorm folded")
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2")
    parser.add_argument("--work", type=Path, help="folder of the trained ResNets; without it they are left out")
    parser.add_argument("--digits", action="store_true", help="the networks of models/")
    parser.add_argument("--effort", choices=["low", "medium", "high"], default="low", help="of recovery")
    parser.add_argument("--shares", type=float, nargs="+", help="only these shares of MobileNetV2's multiply-adds")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="only these numbers of steps")
    parser.add_argument("--draws", type=int, nargs="+", default=[0], help="of the calibration data")
    arguments = parser.parse_args()
    if arguments.shares:
        CASES["mobilenet"] = [{"target_macs": share} for share in arguments.shares]
    for name, cases in CASES.items():
        CASES[name] = [case for case in cases if case.get("iterations", 1) in arguments.steps]
    networks: dict[str, Callable[[], Network] | None] = {
        "mobilenet": arguments.mobilenet and (lambda: Pictures(arguments.data_root, arguments.mobilenet)),
        "minilm": arguments.minilm and (lambda: Sentences(arguments.data_root, arguments.minilm)),
        "fashion": arguments.work and (lambda: Images(arguments.data_root, arguments.work)),
        "digits": Digits if arguments.digits else None,
    }
    entries = json.loads(RESULTS.read_text())["entries"] if RESULTS.exists() else []
    for name, make in networks.items():
        for entry in entries_of(name, make(), arguments.draws, list(entries), arguments.effort) if make else ():
            entries.append(entry)
            RESULTS.write_text(json.dumps({"entries": entries}, indent=1) + "\n")
            print(entry, flush=True)


if __name__ == "__main__":
    main()
