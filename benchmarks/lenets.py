"""What the MNIST benchmarks share: LeNet-300-100 and LeNet-5, the data, training from scratch, pruning, results.

States are picked on 5,000 images held out of the training set; the test set is read once per result, in ONNX Runtime.
The compression ratio counts all parameters, biases too: all / non-zero.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from onnxprune.data.metrics import METRICS
from onnxprune.data.readers import Data
from onnxprune.data.sources import Arrays
from onnxprune.graph.size import figures
from onnxprune.runtime import make_session, run
from onnxprune.training import Masks, TrainSettings
from onnxprune.training.layers import find_layers
from onnxprune.training.loop import train
from onnxprune.training.losses import make_loss
from onnxprune.training.task import Task
from onnxprune.training.view import Head

RESULTS = Path(__file__).parent / "results"
HELD_OUT = 5_000
Score = Callable[[np.ndarray], np.ndarray]


# --- the networks


class LeNet300(nn.Sequential):
    """784-300-100-10, 266,610 parameters."""

    def __init__(self) -> None:
        layers = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
        super().__init__(nn.Flatten(), *layers)


class LeNet5(nn.Sequential):
    """Caffe's LeNet: two convolutions without activation, each followed by max-pooling, and 800-500-10; 431,080."""

    def __init__(self) -> None:
        convolutions = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
        super().__init__(*convolutions, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


# --- the data


def read_idx(path: Path) -> np.ndarray:
    """An idx.gz file: big-endian header of rank and extents, then bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


@dataclass(frozen=True)
class Sets:
    """Training, validation (held out of the training set, the same for all seeds) and test data.

    Images are float32 [N, 1, 28, 28], of mean 0 and deviation 1 over the training set; labels int64 [N].
    """

    train: Data
    validation: Data
    test: tuple[np.ndarray, np.ndarray]

    @property
    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """The validation images and labels."""
        source = self.validation.source
        assert isinstance(source, Arrays)
        return source.inputs[0], source.targets[0]


def load_sets(root: Path) -> Sets:
    """The data of a folder with the four idx.gz files of MNIST or Fashion-MNIST."""
    x, y = _part(root, "train")
    mean, deviation = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    test_x, test_y = _part(root, "t10k")
    x, test_x = ((images - np.float32(mean)) / np.float32(deviation) for images in (x, test_x))
    order = np.random.default_rng(2015).permutation(len(x))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    return Sets(
        Data(Arrays((x[rest],), (y[rest],)), (0,)), Data(Arrays((x[held],), (y[held],)), (0,)), (test_x, test_y)
    )


def _part(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(root / f"{part}-images-idx3-ubyte.gz")[:, None].astype(np.float32) / 255
    return images, read_idx(root / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)


def error(path: Path, data: tuple[np.ndarray, np.ndarray]) -> float:
    """Error in percent, in ONNX Runtime."""
    session = make_session(path, threads=1)
    (feed,), (output,) = session.get_inputs(), session.get_outputs()
    images, labels = data
    scores = [run(session, {feed.name: images[i : i + 500]})[output.name] for i in range(0, len(images), 500)]
    return 100 * float((np.concatenate(scores).argmax(1) != labels).mean())


# --- training from scratch


def train_dense(build: Callable[[], nn.Module], settings: TrainSettings, sets: Sets, path: Path) -> None:
    """Train a network from new weights, by the seed of the settings, and export it."""
    torch.manual_seed(settings.seed)
    module = build()
    heads = (Head("scores", "values", 1),)
    loss = make_loss(settings, heads, (torch.zeros(1, dtype=torch.int64),), (0,))
    metric = METRICS.find("accuracy")
    train(Task(module, sets.train.source, sets.validation.source, heads, (0,), loss, metric), settings)
    export(module, path)


def export(module: nn.Module, path: Path) -> None:
    """Write the module as ONNX, with a free batch axis."""
    axes = {"images": {0: "N"}, "scores": {0: "N"}}
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["scores"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(module.eval(), (torch.zeros(1, 1, 28, 28),), path, dynamic_axes=axes, dynamo=False, **names)


# --- pruning


def parameters(model: ir.Model) -> dict[str, np.ndarray]:
    """Weights and biases by name."""
    roles = find_layers(model)
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and name in roles and roles[name].role in ("weight", "bias")
    }


def count(model: ir.Model) -> int:
    """Weights and biases."""
    return sum(array.size for array in parameters(model).values())


def magnitude(weight: np.ndarray) -> np.ndarray:
    """|w|, compared over all layers."""
    return np.abs(weight)


def lamp(weight: np.ndarray) -> np.ndarray:
    """w^2 over the sum of the squares that are no smaller, in its layer. Source: Lee et al. 2021, equation 4."""
    squares = np.square(weight.ravel().astype(np.float64))
    order = np.argsort(squares, kind="stable")
    tails = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(tails, np.finfo(np.float64).tiny)
    return scores.reshape(weight.shape)


Prune = Callable[[ir.Model, float, int], tuple[ir.Model, Masks]]
"""(model, sparsity to reach, number of the pruning from 1) -> (pruned model, masks)."""

SCORES: dict[str, Score] = {"magnitude": magnitude, "lamp": lamp}


def pruner(score: Score, total: int) -> Prune:
    """Keep the weights of the highest scores, so many that with the biases `1 - sparsity` of `total` is left."""

    def prune(model: ir.Model, sparsity: float, step: int) -> tuple[ir.Model, Masks]:
        named = parameters(model)
        biases = sum(array.size for array in named.values() if array.ndim == 1)
        keep = round((1 - sparsity) * total) - biases
        return model, highest({n: array for n, array in named.items() if array.ndim > 1}, score, keep)

    return prune


def highest(weights: Mapping[str, np.ndarray], score: Score, keep: int) -> Masks:
    """Masks that keep the `keep` weights of the highest scores over all layers; zeros are never kept before others."""
    scores = {name: np.where(array != 0, score(array), -1.0) for name, array in weights.items()}
    flat = np.concatenate([array.ravel() for array in scores.values()])
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(-flat, kind="stable")[:keep]] = True
    ends = np.cumsum([array.size for array in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(chosen, ends), strict=True)
    return {name: part.reshape(array.shape) for (name, array), part in parts}


# --- results


class Results:
    """The results of one network and seed, in a JSON file that is rewritten whole after each."""

    def __init__(self, folder: str, name: str, seed: int) -> None:
        self.path = RESULTS / folder / f"{name}-seed{seed}.json"
        self.name, self.seed = name, seed
        self.entries: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else []

    def has(self, method: str, target: float) -> bool:
        """True if that result is there already."""
        return any((entry["method"], entry["target"]) == (method, target) for entry in self.entries)

    def add(
        self, method: str, target: float, path: Path, sets: Sets, seconds: float, settings: TrainSettings, **more: Any
    ) -> None:
        """Measure the file and write the result down."""
        model = ir.load(path)
        arrays = parameters(model)
        total, left = count(model), sum(int(np.count_nonzero(array)) for array in arrays.values())
        entry = {
            "network": self.name,
            "seed": self.seed,
            "method": method,
            "target": target,
            "parameters": total,
            "nonzero": left,
            "ratio": round(total / left, 3),
            "test_error": round(error(path, sets.test), 4),
            "validation_error": round(error(path, sets.held_out), 4),
            "file_bytes": figures(model).file_bytes,
            "cpu_seconds": round(seconds, 1),
            "kept": {name: int(np.count_nonzero(array)) for name, array in arrays.items()},
            "settings": settings.model_dump(exclude_defaults=True),
            **more,
        }
        self.entries = [e for e in self.entries if (e["method"], e["target"]) != (method, target)] + [entry]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(self.entries, indent=1) + "\n")
        beside.replace(self.path)
        errors = f"test {entry['test_error']:.2f} %  validation {entry['validation_error']:.2f} %"
        what = f"{self.name} seed {self.seed}  {method:>16} {target:7g} ({entry['ratio']:.1f}x)"
        print(f"{what}  {errors}  {seconds:.0f} s", flush=True)


def data_folder(parser: argparse.ArgumentParser, args: argparse.Namespace, name: str) -> Path:
    """The folder of one data set, or the parser's error."""
    if args.data_root is None or not (args.data_root / name).is_dir():
        parser.error(f"there is no folder {name} in --data-root (or ONNXPRUNE_DATA)")
    return Path(args.data_root) / name


def data_argument(parser: argparse.ArgumentParser) -> None:
    """--data-root, by default from ONNXPRUNE_DATA."""
    default = os.environ.get("ONNXPRUNE_DATA")
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path(default) if default else None,
        help="folder that holds mnist/ and fashion_mnist/ with their idx.gz files (default: ONNXPRUNE_DATA)",
    )
