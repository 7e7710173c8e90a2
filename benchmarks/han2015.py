"""Han et al. 2015 on MNIST, through the Python API on ONNX files: LeNet-300-100 and LeNet-5 (Caffe, 431 K parameters).

For each seed a dense network is trained and exported to .onnx. From there on only the file is worked on:

    weights   prune single weights, retrain with the learning rate rewound, and so on to ever higher compression: one
              chain through all ratios, each from the one before
    channels  remove whole channels and neurons of LeNet-5 in steps, retrain, and measure the speed in ONNX Runtime
    figure5   Han's Figure 5: accuracy against the share kept, for L1 and L2, with and without retraining, iterated
    summary   mean and deviation over the seeds, as a table and plots, from the result files alone

    python benchmarks/han2015.py weights --data-root DATA --network lenet-300-100 --seeds 0 1 2

Resumable: every finished result is in benchmarks/results/han2015/<network>-seed<N>.json and is not made again, the
models lie in --work, and what was under way goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from han2015_summary import summarise
from lenets import (
    SCORES,
    LeNet5,
    LeNet300,
    Results,
    Sets,
    count,
    data_argument,
    data_folder,
    load_sets,
    parameters,
    pruner,
    train_dense,
)
from torch import nn

import onnxprune
from onnxprune.graph.size import figures
from onnxprune.runtime import alternate, concrete_shapes, make_session
from onnxprune.scoring.threshold import threshold_masks
from onnxprune.training import Masks, TrainSettings, apply_masks, retrain

FOLDER = "han2015"


@dataclass(frozen=True)
class Network:
    """How one network is trained and pruned.

    Attributes:
        build: Makes it.
        dense: Training from scratch.
        retrain: Training after each pruning.
        ratios: Compression ratios of the chain.
    """

    build: Callable[[], nn.Module]
    dense: TrainSettings
    retrain: TrainSettings
    ratios: tuple[float, ...]


NETWORKS = {
    "lenet-300-100": Network(
        LeNet300,
        TrainSettings(epochs=20, batch_size=128, learning_rate=1e-3),
        TrainSettings(epochs=16, batch_size=128, learning_rate=3e-3, warmup=0.02, l2=5e-4),
        (4, 10, 16, 24, 36, 45, 56, 80, 120),
    ),
    "lenet-5": Network(
        LeNet5,
        TrainSettings(epochs=8, batch_size=128, learning_rate=1e-3),
        TrainSettings(epochs=5, batch_size=128, learning_rate=3e-3, warmup=0.02, l2=3e-4),
        (4, 12, 30, 50, 70, 100, 150, 200),
    ),
}


@dataclass(frozen=True)
class Place:
    """One network and seed: where its models and results are."""

    name: str
    seed: int
    sets: Sets
    work: Path

    @property
    def network(self) -> Network:
        """How it is trained and pruned."""
        return NETWORKS[self.name]

    @property
    def results(self) -> Results:
        """Its result file."""
        return Results(FOLDER, self.name, self.seed)

    def path(self, stem: str) -> Path:
        """The model of that name."""
        return self.work / f"{self.name}-seed{self.seed}" / f"{stem}.onnx"

    def settings(self, settings: TrainSettings) -> TrainSettings:
        """The settings with this seed."""
        return settings.model_copy(update={"seed": self.seed})

    def done(self, method: str, target: float, stem: str) -> bool:
        """True if the model and its result are there already."""
        return self.path(stem).exists() and self.results.has(method, target)

    def dense(self, method: str = "dense", **changes: float) -> Path:
        """The network trained from scratch, by the network's settings with these changes."""
        path = self.path(method)
        if not self.done(method, 1, method):
            started = time.process_time()
            settings = self.settings(self.network.dense).model_copy(update=changes)
            train_dense(self.network.build, settings, self.sets, path)
            self.results.add(method, 1, path, self.sets, time.process_time() - started, settings)
        return path


# --- single weights


def weights(place: Place, score: str, ratios: Sequence[float]) -> None:
    """Dense network, then one compression ratio after the other, each from the one before."""
    path = place.dense()
    prune = pruner(SCORES[score], count(ir.load(path)))
    for ratio in ratios or place.network.ratios:
        stem = f"{score}-{ratio:g}x"
        if not place.done(score, ratio, stem):
            started = time.process_time()
            settings = place.settings(place.network.retrain)
            pruned, masks = prune(ir.load(path), 1 - 1 / ratio, 1)
            result = retrain(
                apply_masks(pruned, masks),
                place.sets.train,
                settings,
                masks=masks,
                validation=place.sets.validation,
                checkpoint=place.path(stem).with_suffix("") / "training.safetensors",
            )
            ir.save(result.model, place.path(stem))
            seconds = time.process_time() - started
            place.results.add(score, ratio, place.path(stem), place.sets, seconds, settings)
        path = place.path(stem)


# --- channels

CHANNEL_STEPS = (0.5, 0.7, 0.8, 0.87, 0.9)


def channels(place: Place, steps: Sequence[float]) -> None:
    """Remove units in steps, up to the last share of the parameters; retrain after each; measure the speed."""
    dense = path = place.dense()
    total = count(ir.load(dense))
    for share in steps or CHANNEL_STEPS:
        stem = f"channels-{share:g}"
        if not place.done("channels", share, stem):
            started = time.process_time()
            model = ir.load(path)
            left = count(model)
            step = 1 - (1 - share) * total / left
            pruned = onnxprune.prune(
                model,
                sparsity=step,
                structure="channels",
                allocation="global",
                ends="prune",
                round_to="none",
                verification=False,
            ).model
            settings = place.settings(place.network.retrain)
            done = retrain(pruned, place.sets.train, settings, validation=place.sets.validation)
            ir.save(done.model, place.path(stem))
            speed = measure_speed(dense, place.path(stem))
            seconds = time.process_time() - started
            place.results.add("channels", share, place.path(stem), place.sets, seconds, settings, **speed)
        path = place.path(stem)


def measure_speed(dense: Path, pruned: Path) -> dict[str, float]:
    """Compression ratio, and shares of the dense network's multiply-adds and ONNX Runtime time that are left."""
    images = np.zeros((1, 1, 28, 28), np.float32)
    sizes = [figures(model, concrete_shapes(model, {"images": images})) for model in map(ir.load, (dense, pruned))]
    sessions = [make_session(path, threads=1) for path in (dense, pruned)]
    times = {
        f"latency_batch{n}": round(alternate(*sessions, {"images": np.repeat(images, n, 0)}, rounds=31).ratio, 4)
        for n in (1, 64)
    }
    macs = (sizes[1].macs or 0) / (sizes[0].macs or 1)
    ratio = sizes[0].parameters / sizes[1].nonzero_parameters
    return {"ratio": round(ratio, 3), "macs_left": round(macs, 4), **times}


# --- Han's Figure 5

SHARES = (0.5, 0.3, 0.2, 0.12, 0.08, 0.05, 0.03)
FIGURE_RETRAIN = TrainSettings(epochs=2, batch_size=128, learning_rate=5e-4, warmup=0.02)
PENALTIES = {"l1": 2e-5, "l2": 5e-4}


def figure5(place: Place) -> None:
    """Five curves: L1 and L2, each pruned only and pruned and retrained, and L2 pruned and retrained in turns."""
    for penalty, strength in PENALTIES.items():
        dense = ir.load(place.dense(f"dense-{penalty}", **{penalty: strength}))
        settings = place.settings(FIGURE_RETRAIN).model_copy(update={penalty: strength})
        for share in SHARES:
            masks = thresholded(dense, share)
            one(place, f"{penalty}-pruned", share, settings, partial(apply_masks, dense, masks))
            one(place, f"{penalty}-retrained", share, settings, partial(trained, place, dense, masks, settings))
    model = ir.load(place.path("dense-l2"))
    for share in SHARES:
        masks = thresholded(model, share)
        stem = one(place, "l2-iterated", share, settings, partial(trained, place, model, masks, settings))
        model = ir.load(stem)


def thresholded(model: ir.Model, share: float) -> Masks:
    """Han's masks: q times each layer's deviation, q such that `share` of the weights is kept (by bisection)."""
    matrices = {name: array for name, array in parameters(model).items() if array.ndim > 1}
    total = sum(array.size for array in matrices.values())
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        kept = sum(int(mask.sum()) for mask in threshold_masks(matrices, middle).values()) / total
        low, high = (middle, high) if kept > share else (low, middle)
    return threshold_masks(matrices, high)


def trained(place: Place, model: ir.Model, masks: Masks, settings: TrainSettings) -> ir.Model:
    """Pruned and retrained."""
    sets = place.sets
    return retrain(apply_masks(model, masks), sets.train, settings, masks=masks, validation=sets.validation).model


def one(place: Place, method: str, share: float, settings: TrainSettings, make: Callable[[], ir.Model]) -> Path:
    """One point of a curve, made unless it is there."""
    stem = f"{method}-{share:g}"
    if not place.done(method, share, stem):
        started = time.process_time()
        ir.save(make(), place.path(stem))
        place.results.add(method, share, place.path(stem), place.sets, time.process_time() - started, settings)
    return place.path(stem)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["weights", "channels", "figure5", "summary"])
    parser.add_argument("--work", type=Path, default=Path("build/han2015"), help="folder for the models")
    parser.add_argument("--network", choices=NETWORKS, default="lenet-5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--score", choices=SCORES, default="lamp")
    parser.add_argument("--ratios", type=float, nargs="+", default=[], help="compression ratios of the chain")
    data_argument(parser)
    args = parser.parse_args()
    if args.part == "summary":
        summarise(FOLDER)
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sets = load_sets(data_folder(parser, args, "mnist"))
    for seed in args.seeds:
        place = Place(args.network, seed, sets, args.work)
        if args.part == "weights":
            weights(place, args.score, args.ratios)
        elif args.part == "channels":
            channels(place, ())
        else:
            figure5(place)


if __name__ == "__main__":
    main()
