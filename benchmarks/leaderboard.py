"""The leaderboard: networks x methods x costs, what is left of the accuracy and what it brings.

    python benchmarks/leaderboard.py --data-root DATA --work build/recovery_mnist
    python benchmarks/leaderboard.py --data-root DATA --mobilenet mobilenet_v2_imagenet.onnx --minilm minilm_l6.onnx
    python benchmarks/leaderboard.py --model net.onnx --calibration some.npz --eval-data labelled.npz
    python benchmarks/leaderboard.py --methods "onnxprune, high effort" --draws 0 --costs "0.7 of the work" ...
    python benchmarks/leaderboard.py --page

Networks are those of `units.py` and `single_weights.py` with their calibration samples and scores, the LeNets of
`recovery_mnist.py`, and any file with data of its own. Scores are accuracy in percent (MiniLM: Spearman's rank
correlation), each for three draws of the calibration samples. Latency is CPU time of one sample, after / before, in
alternation on one thread; bytes are those of the file, zeros packed where weights are zero. CPU seconds are those of
the whole run. `removed == masked` is the difference of the cut model from the original with the same units zeroed.

Results are benchmarks/results/leaderboard.json: what is there already is not measured again, and a run that was cut
off goes on. The page is docs/leaderboard.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from leaderboard_methods import BY_DEFAULT, COSTS, METHODS, Absent, Cost, Made, macs_of
from leaderboard_page import versions, write_page
from single_weights import IMAGES, Images, Sentences
from units import MODELS, Digits, Pictures

from onnxprune import model_io
from onnxprune.data.calibration import read_calibration
from onnxprune.data.readers import open_data
from onnxprune.packing import pack
from onnxprune.runtime import one_sample
from onnxprune.verification.evaluate import evaluate
from onnxprune.verification.verdict import measure_latency

RESULTS = Path(__file__).parent / "results" / "leaderboard.json"
Inputs = dict[str, npt.NDArray[Any]]


class Network(Protocol):
    """Some networks with data of their own."""

    paths: Mapping[str, Path]

    def calibration(self, model: ir.Model, draw: int) -> Inputs:
        """Calibration inputs, without labels."""

    def score(self, model: ir.Model) -> float:
        """What is measured on other data; more is better."""


class LeNets:
    """The LeNets on MNIST, trained on first use."""

    def __init__(self, root: Path, work: Path) -> None:
        """Train them where they are not in the folder yet."""
        from lenets import load_sets
        from recovery_mnist import NETWORKS, trained

        names = ("lenet-300-100", "lenet-5")
        sets = load_sets(root / NETWORKS[names[0]].data)
        self.paths = {name: trained(name, 0, sets, work)[0] for name in names}
        self._source, self._test = sets.train.source, sets.test

    def calibration(self, model: ir.Model, draw: int) -> Inputs:
        """Images of the training set."""
        chosen = np.random.default_rng(draw).permutation(self._source.count)[:IMAGES]
        return {str(model.graph.inputs[0].name): self._source.rows(chosen).inputs[0]}  # type: ignore[attr-defined]

    def score(self, model: ir.Model) -> float:
        """Accuracy in percent."""
        from recovery_mnist import test_error

        return 100 - test_error(model, self._test)


class Given:
    """A file with data of its own, in any form that onnxprune reads."""

    def __init__(self, path: Path, calibration: Path, eval_data: Path) -> None:
        """Take the files."""
        self.paths = {path.stem: path}
        self._calibration, self._eval_data = calibration, eval_data

    def calibration(self, model: ir.Model, draw: int) -> Inputs:
        """Up to 1,024 samples."""
        return dict(read_calibration(self._calibration, model, IMAGES, draw).inputs)

    def score(self, model: ir.Model) -> float:
        """The metric that fits the data; accuracy in percent."""
        name, value = evaluate(model, open_data(model, self._eval_data))
        return 100 * value if name in ("accuracy", "top5", "agreement") else -value


def module_of(label: str) -> Callable[[], Any] | None:
    """What makes a network as a PyTorch module; None where nothing does."""
    from lenets import LeNet5, LeNet300
    from recovery_mnist import SmallResNet

    if label == "digits_resnet":
        sys.path.append(str(MODELS))
        try:
            from train_digits_resnet import ResNet
        except ImportError:  # its script needs scikit-learn
            return None
        return ResNet
    known: dict[str, Callable[[], Any]] = {
        "resnet-fashion with BatchNorm": SmallResNet, "lenet-300-100": LeNet300, "lenet-5": LeNet5,
    }  # fmt: skip
    return known.get(label)


Key = tuple[str, str, str, int]


def key_of(entry: Mapping[str, Any]) -> Key:
    """What tells an entry from others."""
    return entry["network"], entry["method"], entry["cost"], entry["draw"]


def missing(
    label: str, methods: Sequence[str], draws: Sequence[int], done: set[Key], costs: Sequence[str] = ()
) -> list[tuple[str, Cost, int]]:
    """What is not measured yet, of some costs or of all; a method that looks at no data is run once."""
    return [
        (name, cost, draw)
        for cost in COSTS
        if not costs or cost.name in costs
        for name in methods
        for draw in (draws if METHODS[name].drawn else draws[:1])
        if (label, name, cost.name, draw) not in done
    ]


def measured(network: Network, label: str, name: str, cost: Cost, draw: int) -> dict[str, Any]:
    """One entry: the figures of a run, or why there are none."""
    path, method = network.paths[label], METHODS[name]
    entry = {"network": label, "method": name, "cost": cost.name, "draw": draw}
    if not method.installed:
        return entry | {"why": "not installed"}
    model = model_io.load_any(path)
    inputs = network.calibration(model, draw)
    started = time.process_time()
    try:
        made = method.run(path, cost, inputs, module_of(label) if name == "Torch-Pruning" else None)
        seconds = time.process_time() - started
        return entry | {"seconds": round(seconds, 1)} | figures_of(network, model, made, cost)
    except Absent as reason:
        return entry | {"why": str(reason)}
    except Exception as failure:  # whatever a method raises is its result
        words = (str(failure).splitlines() or [""])[0]
        return entry | {"why": f"fails: {type(failure).__name__}: {words[:120]}"}


def figures_of(network: Network, dense: ir.Model, made: Made, cost: Cost) -> dict[str, Any]:
    """What a model is worth, beside the dense one."""
    stored = made.model if cost.units else pack(made.model)[0]
    latency = measure_latency(dense, made.model, one_sample(dense)).ratio
    figures = {
        "score": round(network.score(made.model), 4),
        "work": round(macs_of(made.model) / macs_of(dense), 4),
        "bytes": round(model_io.saved_size(stored) / model_io.saved_size(dense), 4),
        "latency": round(latency, 3),
    }
    return figures if made.difference is None else figures | {"difference": float(f"{made.difference:.2g}")}


def entries_of(
    network: Network,
    methods: Sequence[str],
    draws: Sequence[int],
    done: Sequence[Mapping[str, Any]],
    only: Sequence[str] = (),
    costs: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yield what is missing of the results of some networks, or only of the networks and costs that are named."""
    known = {key_of(entry) for entry in done}
    for label, path in network.paths.items():
        if only and label not in only:
            continue
        if (label, "dense", "", 0) not in known:
            score = round(network.score(model_io.load_any(path)), 4)
            yield {"network": label, "method": "dense", "cost": "", "draw": 0, "score": score}
        for name, cost, draw in missing(label, methods, draws, known, costs):
            yield measured(network, label, name, cost, draw)


def read() -> list[dict[str, Any]]:
    """All entries so far; those of tools that were not installed are tried again where they are."""
    entries: list[dict[str, Any]] = json.loads(RESULTS.read_text())["entries"] if RESULTS.exists() else []
    return [e for e in entries if e.get("why") != "not installed" or not METHODS[e["method"]].installed]


def write(entries: Sequence[Mapping[str, Any]]) -> None:
    """Write all entries, whole or not at all."""
    head = {"date": datetime.date.today().isoformat(), "versions": versions(METHODS.values())}
    lines = ",\n".join(" " + json.dumps(entry) for entry in entries)
    beside = RESULTS.with_suffix(".partial")
    beside.write_text(json.dumps(head)[:-1] + f', "entries": [\n{lines}\n]}}\n')
    beside.replace(RESULTS)


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of imagenet_1000/, stsb/, fashion_mnist/, mnist/")
    parser.add_argument("--work", type=Path, help="folder of the trained ResNets and LeNets; without it: left out")
    parser.add_argument("--lenets", action="store_true", help="the LeNets too, trained on first use")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, BatchNorm folded")
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2")
    parser.add_argument("--model", type=Path, help="any model, with --calibration and --eval-data")
    parser.add_argument("--calibration", type=Path, help="its inputs")
    parser.add_argument("--eval-data", type=Path, help="its inputs with labels")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(BY_DEFAULT))
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2], help="of the calibration data")
    parser.add_argument("--only", nargs="+", default=[], help="only these networks, by the names in the table")
    parser.add_argument("--costs", nargs="+", choices=[c.name for c in COSTS], default=[], help="only these costs")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    root, work = arguments.data_root, arguments.work
    networks: dict[str, Callable[[], Network] | None] = {
        "given": arguments.model and (lambda: Given(arguments.model, arguments.calibration, arguments.eval_data)),
        "digits": None if arguments.model else Digits,
        "fashion": work and (lambda: Images(root, work)),
        "lenets": (lambda: LeNets(root, work)) if arguments.lenets else None,
        "mobilenet": arguments.mobilenet and (lambda: Pictures(root, arguments.mobilenet)),
        "minilm": arguments.minilm and (lambda: Sentences(root, arguments.minilm)),
    }
    entries = read()
    chosen = arguments.methods, arguments.draws, list(entries), arguments.only, arguments.costs
    for make in networks.values() if not arguments.page else ():
        for entry in entries_of(make(), *chosen) if make else ():
            entries.append(entry)
            write(entries)
            print(entry, flush=True)
    write_page(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
