"""Train digits_mlp.onnx: LeNet-300-100 for 8x8 digits, linear layers 64-300-100-10 with ReLU.

Run: python models/train_digits_mlp.py
"""

from __future__ import annotations

import digits
from torch import nn


def build() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


if __name__ == "__main__":
    digits.prepare()
    digits.save(digits.train(build(), epochs=120, rate=3e-3), "digits_mlp", exporter="dynamo")
