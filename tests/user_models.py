"""Small networks of the kinds that users bring, exported as they would: stand-ins for models that need a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from text_models import WORDS, write_tokenizer
from torch import Tensor, nn


class Detector(nn.Module):
    """The graph of a YOLO from version 8 on: two scales, sides of boxes as Softmax over 16 bins, classes by Sigmoid."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        self.classes = classes
        self.fine = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU())
        self.coarse = nn.Sequential(nn.Conv2d(32, 48, 3, 2, 1), nn.SiLU())
        self.boxes, self.scores = (
            nn.ModuleList(
                nn.Sequential(nn.Conv2d(width, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, outputs, 1))
                for width in (32, 48)
            )
            for outputs in (64, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        scales = (fine, self.coarse(fine))
        heads = [torch.cat((b(x), s(x)), 1) for x, b, s in zip(scales, self.boxes, self.scores, strict=True)]
        joined = torch.cat([head.view(images.shape[0], 64 + self.classes, -1) for head in heads], 2)
        boxes, scores = joined.split((64, self.classes), 1)
        bins = boxes.view(images.shape[0], 4, 16, -1).transpose(2, 1).softmax(1)
        sides = (bins * torch.arange(16.0).view(1, 16, 1, 1)).sum(1)
        centres, strides = [], []
        for x, stride in zip(scales, (4.0, 8.0), strict=True):
            y, column = torch.meshgrid(*(torch.arange(extent) + 0.5 for extent in x.shape[2:]), indexing="ij")
            centres.append(torch.stack((column, y)).view(2, -1))
            strides.append(torch.full((1, centres[-1].shape[1]), stride))
        centre, (first, last) = torch.cat(centres, 1), sides.chunk(2, 1)
        first, last = centre - first, centre + last
        boxes = torch.cat(((first + last) / 2, last - first), 1) * torch.cat(strides, 1)
        return torch.cat((boxes, scores.sigmoid()), 1)


class Classifier(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        return self.head((x + self.branch(x)).relu().mean((2, 3)))


class Encoder(nn.Module):
    """Two layers of BERT: masked attention with heads, an MLP, LayerNorm behind each."""

    def __init__(self, width: int = 32, heads: int = 4, words: int = 100) -> None:
        super().__init__()
        self.heads, self.words, self.places = heads, nn.Embedding(words, width), nn.Embedding(32, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(width, width) for name in ("query", "key", "value", "out")}
                | {"up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)}
                | {"norm1": nn.LayerNorm(width), "norm2": nn.LayerNorm(width)}
            )
            for _ in range(2)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        hidden = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        batch, length, width = x.shape
        for layer in self.layers:
            q, k, v = (
                layer[name](x).view(batch, length, self.heads, -1).transpose(1, 2) for name in ("query", "key", "value")
            )
            weights = (q @ k.transpose(-2, -1) / (width / self.heads) ** 0.5 + hidden).softmax(-1)
            x = layer["norm1"](x + layer["out"]((weights @ v).transpose(1, 2).reshape(batch, length, width)))
            x = layer["norm2"](x + layer["down"](nn.functional.gelu(layer["up"](x))))
        return x


class SpeechEncoder(nn.Module):
    """Whisper's: two convolutions along the sound, places, and layers of attention with LayerNorm in front."""

    def __init__(self, width: int = 32, heads: int = 4, frames: int = 100) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(80, width, 3, padding=1), nn.Conv1d(width, width, 3, 2, 1)
        self.places = nn.Parameter(torch.randn(frames // 2, width) / 10)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )

    def forward(self, input_features: Tensor) -> Tensor:
        x = nn.functional.gelu(self.second(nn.functional.gelu(self.first(input_features))))
        x = x.transpose(1, 2) + self.places
        for layer in self.layers:
            x = layer(x)
        return x


class SpeechDecoder(nn.Module):
    """Whisper's without a cache: tokens look at those before them, and at what the encoder gives."""

    def __init__(self, width: int = 32, heads: int = 4, words: int = 50) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(16, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        length = input_ids.shape[1]
        x = self.words(input_ids) + self.places(torch.arange(length))
        later = torch.full((length, length), -1e4).triu(1)
        for layer in self.layers:
            x = layer(x, encoder_hidden_states, tgt_mask=later)
        return x @ self.words.weight.T


def _export(network: nn.Module, inputs: dict[str, Tensor], path: Path, axes: dict[int, str]) -> None:
    dynamic = dict.fromkeys(inputs, axes)
    torch.onnx.export(
        network.eval(), tuple(inputs.values()), path, dynamo=False, opset_version=17,
        input_names=list(inputs), output_names=["output0"], dynamic_axes=dynamic,
    )  # fmt: skip


def make_detector(folder: Path) -> None:
    """yolo.onnx, pictures.npz, and a few labelled pictures of the YOLO kind: shapes.yaml."""
    torch.manual_seed(0)
    _export(Detector(), {"images": torch.zeros(1, 3, 32, 32)}, folder / "yolo.onnx", {0: "batch"})
    np.savez(folder / "pictures.npz", images=_numbers(64, 3, 32, 32))
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for number, pixels in enumerate(_numbers(16, 40, 32, 3)):
        Image.fromarray((255 * pixels).astype(np.uint8)).save(folder / "images" / "val" / f"{number}.png")
        (folder / "labels" / "val" / f"{number}.txt").write_text(f"{number % 12} 0.5 0.5 0.25 0.25")
    names = ", ".join(f"{number}: kind {number}" for number in range(12))
    (folder / "shapes.yaml").write_text(f"train: images/val\nval: images/val\nnames: {{{names}}}\n")


def make_classifier(folder: Path) -> None:
    """classifier.onnx, pictures.npz, and validation.npz with labels."""
    torch.manual_seed(0)
    if not (folder / "classifier.onnx").exists():
        _export(Classifier(), {"image": torch.zeros(1, 3, 32, 32)}, folder / "classifier.onnx", {0: "batch"})
        size = 32
    else:
        size = 224  # what the page itself exported
    np.savez(folder / "pictures.npz", image=_numbers(48, 3, size, size))
    np.savez(folder / "validation.npz", image=_numbers(32, 3, size, size), label=np.arange(32) % 10)


def make_encoder(folder: Path) -> None:
    """bert.onnx, its tokenizer.json, sentences.txt, and pairs.jsonl with scores."""
    torch.manual_seed(0)
    inputs = {"input_ids": torch.ones(1, 16, dtype=torch.long), "attention_mask": torch.ones(1, 16, dtype=torch.long)}
    _export(Encoder(), inputs, folder / "bert.onnx", {0: "batch", 1: "length"})
    write_tokenizer(folder)
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, rng.integers(3, 15))) for _ in range(128)]
    (folder / "sentences.txt").write_text("\n".join(sentences))
    pairs = [{"sentence1": a, "sentence2": b, "score": float(rng.random())}
             for a, b in zip(sentences[::2], sentences[1::2], strict=True)]  # fmt: skip
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))


def make_speech(folder: Path) -> None:
    """encoder.onnx and decoder.onnx where the page did not export them, and arrays for the inputs of both."""
    torch.manual_seed(0)
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    if not encoder.exists():
        _export(SpeechEncoder(), {"input_features": torch.zeros(1, 80, 100)}, encoder, {0: "batch"})
        given = {"input_ids": torch.zeros(1, 8, dtype=torch.long), "encoder_hidden_states": torch.zeros(1, 50, 32)}
        _export(SpeechDecoder(), given, decoder, {0: "batch"})
    frames, (places, width) = _extents(encoder, "input_features")[-1], _extents(decoder, "encoder_hidden_states")[1:]
    np.savez(folder / "features.npz", input_features=_numbers(16, 80, frames or 3000))
    tokens = np.random.default_rng(0).integers(0, 32, (16, 8))
    np.savez(folder / "decoder.npz", input_ids=tokens, encoder_hidden_states=_numbers(16, places or 1500, width))


def _extents(path: Path, name: str) -> list[int]:
    """The shape of an input; 0 where an axis is free."""
    (found,) = [value for value in onnx.load(path).graph.input if value.name == name]
    return [dim.dim_value for dim in found.type.tensor_type.shape.dim]


def _numbers(*shape: int) -> Any:
    return np.random.default_rng(0).random(shape, dtype=np.float32)
