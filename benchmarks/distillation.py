"""Retraining without labels: how much of what labels recover does distillation from the original model recover?

On Fashion-MNIST: a dense LeNet-300-100 is pruned (global LAMP, in one shot), and the same pruned file is retrained
twice with equal settings, once with the labels and once without. The share recovered is

    (accuracy retrained without labels - accuracy pruned) / (accuracy retrained with labels - accuracy pruned)

    python benchmarks/distillation.py --data-root DATA --seeds 0 1 2

Without labels there is no accuracy to pick a state by either: agreement with the original on held-out images picks it.
Results are in benchmarks/results/distillation/; what is there is not made again.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import onnx_ir as ir
import torch
from lenets import LeNet300, Results, Sets, count, data_argument, data_folder, lamp, load_sets, pruner, train_dense

from onnxprune.data.readers import Data
from onnxprune.data.sources import Arrays
from onnxprune.training import TrainSettings, apply_masks, retrain

FOLDER = "distillation"
NAME = "lenet-300-100-fashion"
DENSE = TrainSettings(epochs=15, batch_size=128, learning_rate=1e-3)
RETRAIN = TrainSettings(epochs=10, batch_size=128, learning_rate=2e-3, warmup=0.02, metric=None)
UNLABELLED = RETRAIN.model_copy(update={"metric": "agreement", "loss": "distillation", "temperature": 4.0})
RATIOS = (10.0, 20.0)


def compare(seed: int, sets: Sets, work: Path) -> None:
    """Dense, pruned, retrained with labels, retrained without."""
    results = Results(FOLDER, NAME, seed)
    folder = work / f"{NAME}-seed{seed}"
    dense = folder / "dense.onnx"
    if not (dense.exists() and results.has("dense", 1)):
        started = time.process_time()
        settings = DENSE.model_copy(update={"seed": seed})
        train_dense(LeNet300, settings, sets, dense)
        results.add("dense", 1, dense, sets, time.process_time() - started, settings)
    original = ir.load(dense)
    for ratio in RATIOS:
        _, masks = pruner(lamp, count(original))(original, 1 - 1 / ratio, 1)
        pruned = apply_masks(original, masks)
        runs = {
            "pruned": (None, sets.train, sets.validation),
            "labels": (RETRAIN, sets.train, sets.validation),
            "distilled": (UNLABELLED, unlabelled(sets.train), unlabelled(sets.validation)),
        }
        for method, (chosen, data, validation) in runs.items():
            path = folder / f"{method}-{ratio:g}x.onnx"
            if path.exists() and results.has(method, ratio):
                continue
            started = time.process_time()
            settings = (chosen or RETRAIN).model_copy(update={"seed": seed})
            model = pruned
            if chosen is not None:
                model = retrain(pruned, data, settings, masks=masks, validation=validation, original=original).model
            ir.save(model, path)
            results.add(method, ratio, path, sets, time.process_time() - started, settings)
        print(f"seed {seed}  {ratio:g}x  recovered without labels: {recovered(results, ratio):.1%}", flush=True)


def unlabelled(data: Data) -> Data:
    """The same images without their labels."""
    assert isinstance(data.source, Arrays)
    return Data(Arrays(data.source.inputs), ())


def recovered(results: Results, ratio: float) -> float:
    """Share of the labels' recovery that is reached without them."""
    errors = {e["method"]: e["test_error"] for e in results.entries if e["target"] == ratio}
    return (errors["pruned"] - errors["distilled"]) / (errors["pruned"] - errors["labels"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/distillation"), help="folder for the models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    data_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sets = load_sets(data_folder(parser, args, "fashion_mnist"))
    for seed in args.seeds:
        compare(seed, sets, args.work)


if __name__ == "__main__":
    main()
