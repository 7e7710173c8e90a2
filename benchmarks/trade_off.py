"""What accuracy costs: MobileNetV2 on ImageNet pictures, cut to several shares of its work in several ways.

    pip install torch torchvision torch-pruning==1.6.1
    python benchmarks/trade_off.py measure --data-root DATA --mobilenet mobilenet_v2_imagenet.onnx --weights v2.pth
    python benchmarks/trade_off.py draw            ->  docs/images/trade-off.svg, from the results alone

The ways: onnxprune with 334 pictures without labels, onnxprune without data, and Torch-Pruning of the same network in
PyTorch (group magnitude over all layers, rounded to 16 channels), its BatchNorms estimated anew on the same 334
pictures, then exported. Accuracy is top-1 of the 666 other pictures, all in ONNX Runtime; latency is CPU time of one
picture on one thread, against the dense network in alternating runs. Results are benchmarks/results/trade_off.json:
what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.graph import size
from onnxprune.pipeline.run import prune
from onnxprune.verification.verdict import measure_latency

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "trade_off.json"
PICTURE = ROOT / "docs" / "images" / "trade-off.svg"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3)
OURS, BARE, OTHER = "onnxprune", "onnxprune, no data", "Torch-Pruning 1.6.1"
_COLOURS = {OURS: "#0072b2", BARE: "#8ab6d6", OTHER: "#d55e00"}


def ways(
    arguments: argparse.Namespace, pictures: Any, dense: ir.Model
) -> Iterator[tuple[str, float, Callable[[], ir.Model]]]:
    """Each way and setting, with what makes the model."""

    def calibration() -> dict[str, Any]:
        return dict(pictures.calibration(dense, 0))

    if arguments.weights is not None:
        for ratio in RATIOS:
            yield OTHER, ratio, lambda r=ratio: torch_pruned(arguments.weights, r, calibration())
    for share in SHARES:
        settings: dict[str, Any] = {"structure": "channels", "target_macs": share, "latency": False}
        yield OURS, share, lambda s=settings: prune(arguments.mobilenet, calibration=calibration(), **s).model
        yield BARE, share, lambda s=settings: prune(arguments.mobilenet, **s).model


def torch_pruned(weights: Path, ratio: float, calibration: dict[str, Any]) -> ir.Model:
    """Cut the network in PyTorch by Torch-Pruning, estimate its BatchNorms anew, and export it."""
    import torch
    import torch_pruning
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    example = torch.zeros(1, 3, 224, 224)
    pruner = torch_pruning.pruner.BasePruner(
        network, example, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
        pruning_ratio=ratio, max_pruning_ratio=0.9, ignored_layers=[network.classifier[1]], round_to=16,
    )  # fmt: skip
    pruner.step()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
    network.train()
    (images,) = calibration.values()
    with torch.no_grad():
        for start in range(0, len(images), 64):
            network(torch.from_numpy(images[start : start + 64]))
    network.eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pruned.onnx"
        torch.onnx.export(
            network, (example,), file, dynamo=False, opset_version=17, input_names=["input"], output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
        return model_io.load(file).clone()


def measure(arguments: argparse.Namespace) -> None:
    """Measure what is missing."""
    from units import Pictures

    keep_alive = None
    if arguments.weights is not None:
        from depgraph import _torchvision_without_operators

        keep_alive = _torchvision_without_operators()
    pictures = Pictures(arguments.data_root, arguments.mobilenet)
    dense = model_io.load(arguments.mobilenet)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"entries": []}
    if "dense" not in results:
        results["dense"] = {"accuracy": round(pictures.score(dense), 2), **_machine(dense)}
    until = time.monotonic() + arguments.minutes * 60
    for way, setting, make in ways(arguments, pictures, dense):
        if any((e["way"], e["setting"]) == (way, setting) for e in results["entries"]) or time.monotonic() > until:
            continue
        entry = {"way": way, "setting": setting, **_figures(dense, make(), pictures)}
        results["entries"].append(entry)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(entry, flush=True)
    del keep_alive


def _figures(dense: ir.Model, model: ir.Model, pictures: Any) -> dict[str, float]:
    sample = runtime.one_sample(dense)
    sizes = [size.figures(m, runtime.concrete_shapes(m, sample, size.counted_values(m))) for m in (dense, model)]
    latency = measure_latency(dense, model, sample)
    return {
        "macs": round((sizes[1].macs or 0) / (sizes[0].macs or 1), 3),
        "parameters": round(sizes[1].parameters / sizes[0].parameters, 3),
        "latency": round(latency.ratio, 3),
        "accuracy": round(pictures.score(model), 2),
    }


def _machine(dense: ir.Model) -> dict[str, Any]:
    latency = measure_latency(dense, dense, runtime.one_sample(dense))
    about = {"processor": latency.processor, "onnxruntime": latency.onnxruntime, "threads": latency.threads}
    return {"milliseconds": round(latency.before_ms, 1), **about, "date": datetime.date.today().isoformat()}


def draw() -> None:
    """Draw accuracy against latency from the results."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "trade-off"
    from matplotlib import pyplot

    results = json.loads(RESULTS.read_text())
    dense = results["dense"]
    figure, axes = pyplot.subplots(figsize=(7.2, 4.0))
    for way, colour in _COLOURS.items():
        points = sorted((e["latency"], e["accuracy"]) for e in results["entries"] if e["way"] == way)
        if points:
            x, y = np.array(points).T
            axes.plot(x, y, marker="o", color=colour, label=way, linewidth=2 if way == OURS else 1.4)
    axes.plot([1.0], [dense["accuracy"]], marker="*", markersize=14, color="black", linestyle="", label="dense")
    axes.set_xlabel("latency of one picture, after / before (ONNX Runtime, one thread)")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title("MobileNetV2, ImageNet pictures, no training and no labels", fontsize=11)
    axes.set_ylim(bottom=0)
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "draw"])
    parser.add_argument("--data-root", type=Path, help="folder of imagenet_1000/")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, BatchNorm folded")
    parser.add_argument("--weights", type=Path, help="its PyTorch weights, for Torch-Pruning")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after so long")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        measure(arguments)
    draw()


if __name__ == "__main__":
    main()
