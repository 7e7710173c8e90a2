"""A detector pruned without labels: what its mean average precision loses at several shares of its work.

    python benchmarks/detection.py train --work WORK     ->  WORK/detector.onnx, from a data set that is made here
    python benchmarks/detection.py measure --work WORK   ->  benchmarks/results/detection.json

The network is built as YOLOv8 is and trained on pictures of shapes on a photograph (see shapes.py and detector.py):
about a quarter of an hour on one core. Both commands go on where they were stopped. It is then cut by channels, with
the training pictures alone, their labels unread: without recovery, with the recovery of the default, and with the
original as a teacher. mAP is that of COCO on 500 pictures on another photograph, in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapes

RESULTS = Path(__file__).parent / "results" / "detection.json"
EPOCHS, BATCH, RATE = 24, 32, 4e-3
SHARES = (0.5, 0.7, 0.35)
WAYS: dict[str, dict[str, Any]] = {
    "closed forms": {},
    "taught": {"retrain": {"epochs": 6, "learning_rate": 1e-3, "batch_size": 16, "augment": ["flip"]}},
    "cut alone": {"recover": "none"},
}


def train(work: Path, epochs: int) -> None:
    """Train the detector, epoch by epoch, and export it."""
    import torch
    from detector import Detector, loss

    shapes.write(work / "data")
    images, labels = _training_data(work / "data")
    torch.manual_seed(0)
    network = Detector(len(shapes.KINDS))
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, RATE)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=epochs * steps, pct_start=0.1)
    state, begun = work / "training.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        begun = saved["epoch"]
    for epoch in range(begun, epochs):
        start, total = time.process_time(), 0.0
        rng = np.random.default_rng((1, epoch))
        order = rng.permutation(len(images))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            batch, boxes = _varied(images[chosen], [labels[i] for i in chosen], rng)
            value = loss(network, torch.from_numpy(batch), [torch.from_numpy(box) for box in boxes])
            optimiser.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimiser.step()
            schedule.step()
            total += float(value.detach())
        seconds = time.process_time() - start
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}, {seconds:.0f} CPU s", flush=True)
        parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
        torch.save({**{name: part.state_dict() for name, part in parts.items()}, "epoch": epoch + 1}, state)
    _export(network.eval(), work / "detector.onnx")


def _training_data(data: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pictures [N, 3, 128, 128] of 0..255, and the labels of each: kind and corners in pixels."""
    images, labels = [], []
    for picture, drawn in shapes.pictures("train", shapes.COUNTS["train"]):
        images.append(np.asarray(picture).transpose(2, 0, 1))
        labels.append(np.array([(shape.kind, *shape.box) for shape in drawn], np.float32).reshape(-1, 5))
    return np.stack(images), labels


def _varied(images: np.ndarray, labels: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, list[Any]]:
    """Half of the pictures mirrored, left to right and top to bottom, and their colours in another order and light."""
    pictures, boxes = [], []
    for image, label in zip(images, labels, strict=True):
        picture, box = image[rng.permutation(3)], label.copy()
        for axis, low in ((2, 1), (1, 2)):
            if rng.random() < 0.5:
                picture = np.flip(picture, axis)
                box[:, [low, low + 2]] = shapes.SIDE - box[:, [low + 2, low]]
        light = np.float32(rng.uniform(0.7, 1.3))
        pictures.append(np.clip(picture.astype(np.float32) * light / 255, 0, 1))
        boxes.append(box)
    return np.stack(pictures), boxes


def _export(network: Any, path: Path) -> None:
    import torch

    example = torch.zeros(1, 3, shapes.SIDE, shapes.SIDE)
    torch.onnx.export(
        network, (example,), path, dynamo=False, opset_version=17, input_names=["images"], output_names=["output0"],
        dynamic_axes={"images": {0: "batch"}, "output0": {0: "batch"}},
    )  # fmt: skip


def measure(work: Path, shares: Sequence[float] = SHARES, ways: Sequence[str] = tuple(WAYS)) -> None:
    """Cut the detector in each of these ways that is missing in the results."""
    import onnxprune
    from onnxprune import model_io

    detector, data = work / "detector.onnx", shapes.write(work / "data")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"entries": []}
    for share in shares:
        for way in ways:
            settings = WAYS[way]
            if any((entry["way"], entry["work"]) == (way, share) for entry in results["entries"]):
                continue
            start = time.process_time()
            given: dict[str, Any] = {"calibration": data} if way != "cut alone" else {}
            if "retrain" in settings:
                given["data"] = data.parent / "images" / "train"
            model = model_io.load(detector)
            result = onnxprune.prune(
                model, structure="channels", target_macs=share, eval_data=data, seed=0, **settings, **given
            )
            verdict = result.verdict
            assert verdict is not None and verdict.metric is not None
            print(way, share, verdict.metric, flush=True)
            entry = {
                "way": way,
                "work": share,
                "work_left": round((verdict.after.macs or 0) / (verdict.before.macs or 1), 3),
                "map": round(100 * verdict.metric.after, 2),
                "parameters": round(verdict.after.parameters / verdict.before.parameters, 3),
                "latency": None if verdict.latency_ratio is None else round(verdict.latency_ratio, 3),
                "cpu_seconds": round(time.process_time() - start),
            }
            results["dense"] = round(100 * verdict.metric.before, 2)
            results["date"] = datetime.date.today().isoformat()
            results["entries"].append(entry)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(entry, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "measure"))
    parser.add_argument("--work", type=Path, default=Path("build/detection"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of the work that is left")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.command == "train":
        train(arguments.work, arguments.epochs)
    else:
        measure(arguments.work, arguments.shares, arguments.ways)


if __name__ == "__main__":
    main()
