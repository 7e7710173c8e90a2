"""ResNet-18, ResNet-50 and MobileNetV2 at ImageNet size as ONNX files with random weights, kept between runs.

Speed and size do not depend on what the weights are. The architectures are those of He et al. 2016 and Sandler et al.
2018, written out here so that nothing has to be downloaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

CACHE = Path(tempfile.gettempdir()) / "onnxprune-benchmarks"


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and its BatchNorm."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x))."""

    def __init__(self, c_in: int, widths: list[tuple[int, int]], stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c = c_in
        strided = 1 if len(widths) == 3 else 0  # ResNet-50 strides in its 3x3 convolution
        for i, (width, kernel) in enumerate(widths):
            layers += conv_bn(c, width, kernel, stride if i == strided else 1)
            layers += [nn.ReLU()] if i + 1 < len(widths) else []
            c = width
        self.branch = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*conv_bn(c_in, c, 1, stride)) if stride > 1 or c != c_in else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet(blocks: list[int], *, bottleneck: bool) -> nn.Module:
    """A ResNet for 224 x 224 images."""
    layers = [*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        widths = [(width, 1), (width, 3), (4 * width, 1)] if bottleneck else [(width, 3), (width, 3)]
        for i in range(count):
            layers.append(Residual(c, widths, 2 if stage and not i else 1))
            c = widths[-1][0]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 1000))


class Inverted(nn.Module):
    """Expand, filter by depth, project."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        c = c_in * expand
        layers = [*conv_bn(c_in, c, 1), nn.ReLU6()] if expand > 1 else []
        self.layers = nn.Sequential(*layers, *conv_bn(c, c, 3, stride, c), nn.ReLU6(), *conv_bn(c, c_out, 1))
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 of width 1."""
    layers: list[nn.Module] = [*conv_bn(3, 32, 3, 2), nn.ReLU6()]
    c = 32
    settings = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for expand, width, count, stride in settings:
        for i in range(count):
            layers.append(Inverted(c, width, stride if i == 0 else 1, expand))
            c = width
    layers += [*conv_bn(c, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers)


ARCHITECTURES = {
    "resnet18": lambda: resnet([2, 2, 2, 2], bottleneck=False),
    "resnet50": lambda: resnet([3, 4, 6, 3], bottleneck=True),
    "mobilenet_v2": mobilenet_v2,
}


def exported(name: str) -> Path:
    """Return the path of an exported architecture, batch 1, BatchNorm folded; exported on first use."""
    path = CACHE / f"{name}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        model = ARCHITECTURES[name]().eval()
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.onnx.export(
            model, (torch.randn(1, 3, 224, 224),), str(path), opset_version=17, dynamo=False,
            input_names=["input"], output_names=["output"],
        )  # fmt: skip
    return path


if __name__ == "__main__":
    for name in ARCHITECTURES:
        print(exported(name))
