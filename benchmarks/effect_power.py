"""How measured effects are added when units are divided among groups: to a power that is measured, or to fixed ones.

    python benchmarks/effect_power.py --data-root DATA --work build/recovery_mnist --digits
    python benchmarks/effect_power.py --data-root DATA --mobilenet mobilenet_v2_imagenet.onnx --minilm minilm_l6.onnx
    python benchmarks/effect_power.py --data-root DATA --small resnet20.onnx

Networks, calibration samples and scores are those of `units.py`, cut to shares of their multiply-adds with closed forms
alone. `--small` is any network that puts pictures of 32 x 32 into classes: it runs on the pictures of ImageNet, shrunk,
and its score is how often it gives the same class as before, in percent. A power of 1 adds divergences as they are.
Results are benchmarks/results/effect_power.json: what is there already is not measured again. `--table` prints means
over draws.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from PIL import Image
from single_weights import Images, Sentences
from units import Digits, Network, Pictures, keep

from onnxprune import model_io
from onnxprune.pipeline.run import prune
from onnxprune.runtime import make_session
from onnxprune.selection import measured

RESULTS = Path(__file__).parent / "results" / "effect_power.json"
POWERS = ("measured", 0.7, 1.0, 1.3)
SHARES = (0.7, 0.5)
SIDE = 32  # of small pictures
_MEASURED = measured.power_of


class Small(Pictures):
    """A network for small pictures, and the pictures of ImageNet; what it said before counts as right."""

    def __init__(self, root: Path, path: Path) -> None:
        """Take the folder with imagenet_1000/ and the model's file."""
        super().__init__(root, path)
        self.paths = {path.stem: path}
        self._said = self._classes(model_io.load_any(path))

    def score(self, model: ir.Model) -> float:
        """How often it says the same on the other pictures, in percent."""
        return 100 * float((self._classes(model) == self._said).mean())

    def _classes(self, model: ir.Model) -> npt.NDArray[Any]:
        others = self._pictures(np.array([i for i in range(1000) if i % 3]))
        session = make_session(model, optimize="all")
        (scores,) = session.run(None, {session.get_inputs()[0].name: others})
        return np.asarray(scores).argmax(1)

    def _read(self, path: Path) -> Image.Image:
        return super()._read(path).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def entries_of(network: Network, draws: Sequence[int], done: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what is missing of the results of some networks."""
    keys = ("network", "share", "power", "draw")
    known = {tuple(entry[key] for key in keys) for entry in done}
    for label, path in network.paths.items():
        model = model_io.load_any(path)
        for key in ((label, share, power, draw) for share in SHARES for draw in draws for power in POWERS):
            if key in known:
                continue
            _, share, power, draw = key
            used: list[float] = []
            measured.power_of = noted(power, used)
            result = prune(
                path, calibration=network.calibration(model, draw), latency=False, structure="channels",
                target_macs=share,
            )  # fmt: skip
            score = round(network.score(result.model), 4)
            yield dict(zip(keys, key, strict=True)) | {"used": used[0] if used else 1.0, "score": score}


def noted(power: str | float, used: list[float]) -> Callable[..., float]:
    """What stands in for `power_of`: it returns this power, or measures one, and notes it."""

    def call(apart: Sequence[Sequence[float]], together: Sequence[float]) -> float:
        used.append(_MEASURED(apart, together) if power == "measured" else float(power))
        return used[-1]

    return call


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Means over draws: a row for each network and share."""
    lines = ["| network | left of the work | power measured | " + " | ".join(map(str, POWERS)) + " |"]
    lines.append("|---" * (3 + len(POWERS)) + "|")
    for label, share in dict.fromkeys((e["network"], e["share"]) for e in entries):
        mine = [e for e in entries if (e["network"], e["share"]) == (label, share)]
        found = [e["used"] for e in mine if e["power"] == "measured"]
        scores = [[e["score"] for e in mine if e["power"] == power] for power in POWERS]
        cells = [f"{np.mean(of):.3g}" if of else "" for of in scores]
        spread = f"{min(found):.2g} to {max(found):.2g}" if found else ""
        lines.append(f"| {label} | {share:g} | {spread} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and write it after every run; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of imagenet_1000/, stsb/, fashion_mnist/")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, BatchNorm folded")
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2")
    parser.add_argument("--small", type=Path, help="a network that puts pictures of 32 x 32 into classes")
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
        arguments.small and (lambda: Small(root, arguments.small)),
        arguments.minilm and (lambda: Sentences(root, arguments.minilm)),
    )
    entries = json.loads(RESULTS.read_text())["entries"] if RESULTS.exists() else []
    for make in networks if not arguments.table else ():
        if make:
            keep(RESULTS, entries, entries_of(make(), arguments.draws, list(entries)))
    print(table(entries))


if __name__ == "__main__":
    main()
