"""Small convolutional networks, structurally faithful to the published ones. Input: images [batch, 3, height, width].

What each one is in the zoo for: residual adds (ResNet), grouped convolution (ResNeXt), depthwise convolution
(MobileNets, EfficientNet, ConvNeXt), squeeze-excite, dense concats (DenseNet), parallel branches (Inception), split and
channel shuffle (ShuffleNetV2), LayerNorm over channels (ConvNeXt), flatten of a feature map (VGG).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    cin: int,
    cout: int,
    kernel: int | tuple[int, int] = 3,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, activation; 'same' padding."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2)
    layers = [
        nn.Conv2d(cin, cout, (height, width), stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class PooledClassifier(nn.Module):
    """Features [batch, c, h, w] -> global average -> logits [batch, classes]."""

    def __init__(self, features: nn.Module, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class Basic(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(cin, cout, 3, stride), conv_bn(cout, cout, act=None))
        self.shortcut = nn.Identity() if cin == cout and stride == 1 else conv_bn(cin, cout, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(cin, inner, 1), conv_bn(inner, inner, 3, stride, groups), conv_bn(inner, cout, 1, act=None)
        )
        self.shortcut = nn.Identity() if cin == cout and stride == 1 else conv_bn(cin, cout, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet_basic() -> nn.Module:
    stem = nn.Sequential(conv_bn(3, 16, 3, 2), nn.MaxPool2d(3, 2, 1))
    return PooledClassifier(nn.Sequential(stem, Basic(16, 16), Basic(16, 16), Basic(16, 32, 2), Basic(32, 32)), 32)


def resnet_bottleneck() -> nn.Module:
    blocks = [Bottleneck(16, 16, 32), Bottleneck(32, 16, 32), Bottleneck(32, 32, 64, 2), Bottleneck(64, 32, 64)]
    return PooledClassifier(nn.Sequential(conv_bn(3, 16, 3, 2), *blocks), 64)


def resnext() -> nn.Module:
    blocks = [Bottleneck(16, 32, 48, groups=4), Bottleneck(48, 32, 48, groups=4), Bottleneck(48, 64, 96, 2, groups=8)]
    return PooledClassifier(nn.Sequential(conv_bn(3, 16, 3, 2), *blocks), 96)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, (squeeze-excite), project 1x1; the MobileNetV2, V3 and EfficientNet block."""

    def __init__(
        self,
        cin: int,
        inner: int,
        cout: int,
        stride: int,
        act: type[nn.Module],
        kernel: int = 3,
        se: nn.Module | None = None,
    ) -> None:
        super().__init__()
        expand = [conv_bn(cin, inner, 1, act=act)] if inner != cin else []
        depthwise = conv_bn(inner, inner, kernel, stride, groups=inner, act=act)
        self.body = nn.Sequential(*expand, depthwise, *([se] if se else []), conv_bn(inner, cout, 1, act=None))
        self.residual = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2() -> nn.Module:
    act = nn.ReLU6
    blocks = [
        InvertedResidual(16, 16, 16, 1, act),
        InvertedResidual(16, 48, 24, 2, act),
        InvertedResidual(24, 96, 24, 1, act),
        InvertedResidual(24, 96, 32, 2, act),
        InvertedResidual(32, 128, 32, 1, act),
    ]
    return PooledClassifier(nn.Sequential(conv_bn(3, 16, 3, 2, act=act), *blocks, conv_bn(32, 128, 1, act=act)), 128)


class MobileNetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        swish = nn.Hardswish
        self.features = nn.Sequential(
            conv_bn(3, 16, 3, 2, act=swish),
            InvertedResidual(16, 16, 16, 2, nn.ReLU, se=SqueezeExcite(16, 8, nn.ReLU, nn.Hardsigmoid)),
            InvertedResidual(16, 64, 24, 2, nn.ReLU),
            InvertedResidual(24, 88, 24, 1, nn.ReLU),
            InvertedResidual(24, 96, 40, 1, swish, 5, SqueezeExcite(96, 24, nn.ReLU, nn.Hardsigmoid)),
            InvertedResidual(40, 120, 40, 1, swish, 5, SqueezeExcite(120, 32, nn.ReLU, nn.Hardsigmoid)),
            conv_bn(40, 120, 1, act=swish),
        )
        self.classifier = nn.Sequential(nn.Linear(120, 96), swish(), nn.Dropout(0.2), nn.Linear(96, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def efficientnet() -> nn.Module:
    act = nn.SiLU

    def block(cin: int, inner: int, cout: int, stride: int, kernel: int) -> nn.Module:
        return InvertedResidual(cin, inner, cout, stride, act, kernel, SqueezeExcite(inner, cin // 4, act, nn.Sigmoid))

    blocks = [block(16, 16, 16, 1, 3), block(16, 96, 24, 2, 3), block(24, 144, 24, 1, 3), block(24, 144, 40, 2, 5)]
    return PooledClassifier(nn.Sequential(conv_bn(3, 16, 3, 2, act=act), *blocks, conv_bn(40, 128, 1, act=act)), 128)


class DenseLayer(nn.Module):
    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, cin: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(cin + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet() -> nn.Module:
    transition = nn.Sequential(nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 24, 1, bias=False), nn.AvgPool2d(2))
    blocks = [conv_bn(3, 24, 3, 2), DenseBlock(24, 8, 3), transition, DenseBlock(24, 8, 3)]
    return PooledClassifier(nn.Sequential(*blocks, nn.BatchNorm2d(48), nn.ReLU()), 48)


class InceptionBlock(nn.Module):
    """Four parallel branches, one factorised into 1x7 and 7x1, one average-pooled, concatenated."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.point = conv_bn(cin, 16, 1)
        self.square = nn.Sequential(conv_bn(cin, 16, 1), conv_bn(16, 24, 3))
        self.factorised = nn.Sequential(conv_bn(cin, 12, 1), conv_bn(12, 12, (1, 7)), conv_bn(12, 16, (7, 1)))
        self.pooled = conv_bn(cin, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.avg_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.point(x), self.square(x), self.factorised(x), pooled], 1)


class InceptionReduction(nn.Module):
    def __init__(self, cin: int) -> None:
        super().__init__()
        self.strided = conv_bn(cin, 32, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.strided(x), F.max_pool2d(x, 3, 2, padding=1)], 1)


def inception() -> nn.Module:
    blocks = [InceptionBlock(16), InceptionBlock(64), InceptionReduction(64), InceptionBlock(96)]
    return PooledClassifier(nn.Sequential(conv_bn(3, 16, 3, 2), *blocks), 64)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: at stride 1 half the channels pass through, at stride 2 both branches convolve; then a shuffle."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, cout // 2
        entry = cin if stride == 2 else half
        down = nn.Sequential(conv_bn(cin, cin, 3, 2, cin, act=None), conv_bn(cin, half, 1))
        self.left = down if stride == 2 else nn.Identity()
        self.right = nn.Sequential(
            conv_bn(entry, half, 1), conv_bn(half, half, 3, stride, half, act=None), conv_bn(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.stride == 1 else (x, x)
        return channel_shuffle(torch.cat([self.left(left), self.right(right)], 1), 2)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


def shufflenet_v2() -> nn.Module:
    sizes = [(16, 48, 2), (48, 48, 1), (48, 48, 1), (48, 96, 2), (96, 96, 1)]  # in, out, stride
    units = [ShuffleUnit(*size) for size in sizes]
    return PooledClassifier(nn.Sequential(conv_bn(3, 16), *units, conv_bn(96, 128, 1)), 128)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of [batch, c, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layer_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.layer_scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 4, 4), ChannelLayerNorm(24), ConvNeXtBlock(24), ConvNeXtBlock(24),
            ChannelLayerNorm(24), nn.Conv2d(24, 48, 2, 2), ConvNeXtBlock(48),
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.features(x).mean((-2, -1))))


def vgg() -> nn.Module:
    """Plain convolutions with bias, max pooling, and a flatten of a 4x4 map into wide linear layers."""
    features = [
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    ]  # fmt: skip
    classifier = [nn.Flatten(), nn.Linear(32 * 4 * 4, 96), nn.ReLU(), nn.Dropout(), nn.Linear(96, 64), nn.ReLU()]
    return nn.Sequential(*features, *classifier, nn.Linear(64, 10))
