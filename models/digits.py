"""What the three training scripts share: the data, the training loop, the export, the files that are written.

The data are scikit-learn's handwritten digits (1,797 images of 8x8, from the UCI "Optical Recognition of Handwritten
Digits" set), scaled to [0, 1]. A seeded fifth is held out; it is never seen in training and lies beside each model.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
INPUT = "image"
SEED = 2024


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(training images, held-out images, training labels, held-out labels): float32 [n, 1, 8, 8] and int64 [n]."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    train_x, held_x, train_y, held_y = train_test_split(
        images, labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    return train_x, held_x, train_y, held_y


def prepare() -> None:
    """Make what follows repeatable: one thread, one seed, deterministic kernels."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)


def train(model: nn.Module, epochs: int, rate: float, weight_decay: float = 1e-4, batch: int = 64) -> nn.Module:
    """AdamW with a one-cycle rate, label smoothing and shifts by up to one pixel; returns the model in eval mode."""
    images, _, labels, _ = map(torch.from_numpy, split())
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in _batches(len(images), batch):
            loss = F.cross_entropy(model(_shifted(images[chosen])), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _batches(count: int, batch: int) -> Iterator[Tensor]:
    """Shuffled index batches; the incomplete last one is dropped."""
    order = torch.randperm(count)
    yield from order[: count - count % batch].split(batch)


def _shifted(images: Tensor) -> Tensor:
    """The whole batch moved by -1, 0 or 1 pixels along each axis, zeros coming in."""
    down, right = (int(offset) for offset in torch.randint(0, 3, (2,)))
    return F.pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def save(model: nn.Module, name: str, exporter: str, opset: int = 18) -> None:
    """Write NAME.onnx (dynamic batch), NAME.npz (held-out inputs and labels) and digits_train.npz into this folder."""
    example = torch.zeros(2, 1, 8, 8)
    proto = _by_dynamo(model, example, opset) if exporter == "dynamo" else _by_legacy(model, example, opset)
    strip_build_traces(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, FOLDER / f"{name}.onnx")
    train_images, images, train_labels, labels = split()
    _save_samples(f"{name}.npz", images, labels)
    _save_samples("digits_train.npz", train_images, train_labels)


def _save_samples(file: str, images: np.ndarray, labels: np.ndarray) -> None:
    arrays: dict[str, Any] = {INPUT: images, "label": labels}
    np.savez_compressed(FOLDER / file, **arrays)


def _by_dynamo(model: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        input_names=[INPUT],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _by_legacy(model: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    """By the TorchScript exporter, with BatchNormalization left as it is instead of folded into Conv."""
    buffer: Any = io.BytesIO()
    torch.onnx.export(
        model,
        (example,),
        buffer,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        input_names=[INPUT],
        output_names=["logits"],
        dynamic_axes={INPUT: {0: "batch"}, "logits": {0: "batch"}},
        opset_version=opset,
    )
    return onnx.load_from_string(buffer.getvalue())


def strip_build_traces(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes on every node and tensor: they hold source paths, and half of the file."""
    graph = proto.graph
    for part in [graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    proto.ClearField("metadata_props")
