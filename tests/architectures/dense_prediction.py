"""Small networks with maps as outputs: U-Net (transposed convolution, skip concats) and a YOLO-like detector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutional import conv_bn


def _double_conv(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(cin, cout), conv_bn(cout, cout))


class UNet(nn.Module):
    """Image [batch, 3, h, w] -> class maps [batch, 4, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _double_conv(3, 16), _double_conv(16, 24), _double_conv(24, 48)
        self.rise2, self.up2 = nn.ConvTranspose2d(48, 24, 2, 2), _double_conv(48, 24)
        self.rise1, self.up1 = nn.ConvTranspose2d(24, 16, 2, 2), _double_conv(32, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        middle = self.down2(F.max_pool2d(high, 2))
        low = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up2(torch.cat([middle, self.rise2(low)], 1))
        return self.head(self.up1(torch.cat([high, self.rise1(middle)], 1)))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(channels, channels, 1, act=nn.SiLU), conv_bn(channels, channels, 3, act=nn.SiLU)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CrossStagePartial(nn.Module):
    """YOLOv5's C3: two 1x1 branches, one through residual bottlenecks, concatenated and fused."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        half = cout // 2
        self.main, self.side = conv_bn(cin, half, 1, act=nn.SiLU), conv_bn(cin, half, 1, act=nn.SiLU)
        self.blocks, self.fuse = Residual(half), conv_bn(cout, cout, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.blocks(self.main(x)), self.side(x)], 1))


class SplitPartial(nn.Module):
    """YOLOv8's C2f: one 1x1, split in two, the second half through residual bottlenecks, all stages concatenated."""

    def __init__(self, cin: int, cout: int, depth: int = 2) -> None:
        super().__init__()
        half = cout // 2
        self.entry = conv_bn(cin, cout, 1, act=nn.SiLU)
        self.blocks = nn.ModuleList(Residual(half) for _ in range(depth))
        self.fuse = conv_bn((2 + depth) * half, cout, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        stages = list(self.entry(x).chunk(2, 1))
        for block in self.blocks:
            stages.append(block(stages[-1]))
        return self.fuse(torch.cat(stages, 1))


class SpatialPyramid(nn.Module):
    """Max pooling at three sizes next to the input, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.entry, self.fuse = conv_bn(channels, half, 1, act=nn.SiLU), conv_bn(4 * half, channels, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        pooled = [F.max_pool2d(x, size, 1, size // 2) for size in (3, 5, 7)]
        return self.fuse(torch.cat([x, *pooled], 1))


class Detector(nn.Module):
    """Image [batch, 3, 64, 64] -> three outputs [batch, anchors, h, w, 5 + classes] at strides 8, 16 and 32."""

    anchors, classes = 3, 4

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU
        self.stem = nn.Sequential(
            conv_bn(3, 8, 3, 2, act=act), conv_bn(8, 16, 3, 2, act=act), CrossStagePartial(16, 16)
        )
        self.stage3 = nn.Sequential(conv_bn(16, 24, 3, 2, act=act), CrossStagePartial(24, 24))
        self.stage4 = nn.Sequential(conv_bn(24, 32, 3, 2, act=act), SplitPartial(32, 32))
        self.stage5 = nn.Sequential(conv_bn(32, 48, 3, 2, act=act), SpatialPyramid(48))
        self.top4, self.top3 = SplitPartial(48 + 32, 32), CrossStagePartial(32 + 24, 24)
        self.down4, self.bottom4 = conv_bn(24, 24, 3, 2, act=act), CrossStagePartial(24 + 32, 32)
        self.heads = nn.ModuleList(nn.Conv2d(width, self.anchors * (5 + self.classes), 1) for width in (24, 32, 48))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        p3 = self.stage3(self.stem(x))
        p4 = self.stage4(p3)
        p5 = self.stage5(p4)
        p4 = self.top4(torch.cat([F.interpolate(p5, scale_factor=2.0, mode="nearest"), p4], 1))
        p3 = self.top3(torch.cat([F.interpolate(p4, scale_factor=2.0, mode="nearest"), p3], 1))
        p4 = self.bottom4(torch.cat([self.down4(p3), p4], 1))
        return tuple(self._grid(head(level)) for head, level in zip(self.heads, (p3, p4, p5), strict=True))

    def _grid(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        x = x.view(batch, self.anchors, 5 + self.classes, height, width)
        return x.permute(0, 1, 3, 4, 2).contiguous().sigmoid()
