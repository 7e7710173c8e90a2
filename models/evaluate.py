"""Measure models on held-out data in ONNX Runtime: python models/evaluate.py [MODEL.onnx ...] [--data DATA.npz]

Without arguments: every trained model in this folder, each on the .npz beside it. A pruned model of another name is
measured with --data. Needs numpy, onnx and onnxruntime only. The .npz holds one array per model input, named like it,
and `label` [n]; the first output of the model is taken as class scores [n, classes].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

FOLDER = Path(__file__).resolve().parent


def accuracy(model: Path, data: Path) -> tuple[int, int]:
    """(right answers, samples)."""
    arrays = dict(np.load(data))
    labels = arrays.pop("label")
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    scores = np.asarray(session.run(None, arrays)[0])
    return int((scores.argmax(1) == labels).sum()), len(labels)


def parameters(model: Path) -> int:
    """Numbers held in float initializers, BatchNorm statistics included."""
    tensors = onnx.load(str(model)).graph.initializer
    return sum(int(np.prod(tensor.dims)) for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy, parameters and size of classifiers in ONNX Runtime.")
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--data", type=Path, metavar="DATA.npz", help="instead of the .npz beside the model")
    arguments = parser.parse_args()
    print(f"{'model':<32} {'accuracy':>18} {'parameters':>11} {'bytes':>9}")
    for model in arguments.models or sorted(
        path for path in FOLDER.glob("*.onnx") if path.with_suffix(".npz").exists()
    ):
        right, count = accuracy(model, arguments.data or model.with_suffix(".npz"))
        share = f"{right / count:.2%} ({right}/{count})"
        print(f"{model.name:<32} {share:>18} {parameters(model):>11,} {model.stat().st_size:>9,}")


if __name__ == "__main__":
    main()
