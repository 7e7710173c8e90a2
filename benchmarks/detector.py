"""A small detector built as YOLOv8 is, and its training; half of YOLOv8n's width, for pictures of 128 pixels.

Backbone of C2f blocks, SPPF, a neck up and down, and a head of its own for sides (16 bins each) and classes at each of
three scales. Labels are assigned by how well predictions fit them (Feng et al. 2021, as YOLOv8 has it); the loss is
binary cross-entropy of the classes, CIoU (Zheng et al. 2020) of the boxes, and the distribution focal loss (Li et al.
2020) of the bins.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BINS = 16
STRIDES = (8, 16, 32)
_BEST = 10  # predictions that each label may be assigned to
_GAINS = (7.5, 0.5, 1.5)  # boxes, classes, bins: those of YOLOv8


class Conv(nn.Sequential):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
        )


class Bottleneck(nn.Module):
    """Two convolutions, beside a shortcut where it is asked for."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(Conv(width, width, 3), Conv(width, width, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch if self.shortcut else branch


class C2f(nn.Module):
    """Halves of which one passes through bottlenecks; everything on the way is joined."""

    def __init__(self, inputs: int, outputs: int, shortcut: bool = False) -> None:
        super().__init__()
        self.first, self.last = Conv(inputs, outputs), Conv(outputs // 2 * 3, outputs)
        self.block = Bottleneck(outputs // 2, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.first(x).chunk(2, 1)
        return cast(Tensor, self.last(torch.cat([*halves, self.block(halves[1])], 1)))


class SPPF(nn.Module):
    """What lies around each place, by three poolings in a row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last, self.pool = Conv(width, width // 2), Conv(width * 2, width), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.first(x)]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        return cast(Tensor, self.last(torch.cat(pooled, 1)))


class Detector(nn.Module):
    """Pictures [N, 3, H, W] of 0 to 1 to [N, 4 + classes, places]: centre and size in pixels, and scores."""

    def __init__(self, classes: int, width: int = 8) -> None:
        super().__init__()
        self.classes = classes
        w = [width * factor for factor in (1, 2, 4, 8, 16)]
        self.stem = nn.Sequential(Conv(3, w[0], 3, 2), Conv(w[0], w[1], 3, 2), C2f(w[1], w[1], True))
        self.fine = nn.Sequential(Conv(w[1], w[2], 3, 2), C2f(w[2], w[2], True))
        self.middle = nn.Sequential(Conv(w[2], w[3], 3, 2), C2f(w[3], w[3], True))
        self.coarse = nn.Sequential(Conv(w[3], w[4], 3, 2), C2f(w[4], w[4], True), SPPF(w[4]))
        self.up1, self.up2 = C2f(w[4] + w[3], w[3]), C2f(w[3] + w[2], w[2])
        self.down1, self.down2 = Conv(w[2], w[2], 3, 2), Conv(w[3], w[3], 3, 2)
        self.join1, self.join2 = C2f(w[2] + w[3], w[3]), C2f(w[3] + w[4], w[4])
        self.sides = nn.ModuleList(_branch(inputs, max(w[2], 16), 4 * BINS) for inputs in w[2:])
        self.kinds = nn.ModuleList(_branch(inputs, max(w[2], classes), classes) for inputs in w[2:])
        for branch, stride in zip(self.kinds, STRIDES, strict=True):
            nn.init.constant_(branch[-1].bias, -2.0 - 2 * (stride == STRIDES[0]))  # type: ignore[index, arg-type]

    def maps(self, images: Tensor) -> list[Tensor]:
        """The features of the three scales, as the head reads them."""
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        upper = self.up1(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], 1))
        first = self.up2(torch.cat([F.interpolate(upper, scale_factor=2.0), fine], 1))
        second = self.join1(torch.cat([self.down1(first), upper], 1))
        return [first, second, self.join2(torch.cat([self.down2(second), coarse], 1))]

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bins [N, places, 4, 16] and logits [N, places, classes]; centres [places, 2] and strides of the places."""
        maps = self.maps(images)
        bins = torch.cat([branch(x).flatten(2) for branch, x in zip(self.sides, maps, strict=True)], 2)
        logits = torch.cat([branch(x).flatten(2) for branch, x in zip(self.kinds, maps, strict=True)], 2)
        centres, strides = [], []
        for x, stride in zip(maps, STRIDES, strict=True):
            rows, columns = (torch.arange(extent, device=x.device) + 0.5 for extent in x.shape[2:])
            y, x_ = torch.meshgrid(rows, columns, indexing="ij")
            centres.append(torch.stack([x_, y], 2).reshape(-1, 2) * stride)
            strides.append(torch.full((centres[-1].shape[0],), float(stride), device=x.device))
        return (bins.view(images.shape[0], 4, BINS, -1).permute(0, 3, 1, 2), logits.transpose(1, 2),
                torch.cat(centres), torch.cat(strides))  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        bins, logits, centres, strides = self.raw(images)
        boxes = corners(bins, centres, strides)
        middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        return torch.cat([middle, size, logits.sigmoid()], 2).transpose(1, 2)


def _branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Conv(inputs, width, 3), Conv(width, width, 3), nn.Conv2d(width, outputs, 1))


def corners(bins: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Boxes as corners in pixels, from the distribution of each side's distance."""
    distances = (bins.softmax(3) * torch.arange(float(BINS), device=bins.device)).sum(3) * strides[:, None]
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], 2)


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU of boxes [..., 4] (Zheng et al. 2020)."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    sizes = [(box[..., 2:] - box[..., :2]).clamp_min(1e-4) for box in (first, second)]
    iou = shared / (sizes[0].prod(-1) + sizes[1].prod(-1) - shared + 1e-7)
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    apart = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]).square().sum(-1) / 4
    angles = [torch.atan(size[..., 0] / size[..., 1]) for size in sizes]
    shape = 4 / torch.pi**2 * (angles[0] - angles[1]).square()
    with torch.no_grad():
        share = shape / (shape - iou + 1 + 1e-7)
    return iou - apart / (hull.square().sum(-1) + 1e-7) - share * shape


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, centres: Tensor, kinds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which label each place of one picture is to predict, or -1, and how strongly.

    Args:
        scores: [places, classes].
        boxes: [places, 4].
        centres: [places, 2].
        kinds: [labels].
        labels: [labels, 4].
    """
    overlaps = ciou(labels[:, None], boxes[None]).clamp_min(0)
    inside = torch.cat([centres[None] - labels[:, None, :2], labels[:, None, 2:] - centres[None]], 2).amin(2) > 0
    fits = scores[:, kinds].T.sqrt() * overlaps.pow(6) * inside
    best = torch.zeros_like(fits, dtype=torch.bool).scatter_(1, fits.topk(_BEST, 1).indices, True) & inside & (fits > 0)
    overlaps = torch.where(best, overlaps, -1.0)
    chosen = torch.where(best.any(0), overlaps.argmax(0), -1)
    mine = chosen[None] == torch.arange(len(labels), device=labels.device)[:, None]
    scale = (overlaps * mine).amax(1) / (fits * mine).amax(1).clamp_min(1e-9)
    return chosen, (fits * mine * scale[:, None]).amax(0)


def loss(network: Detector, images: Tensor, labels: list[Tensor]) -> Tensor:
    """The loss of a batch; labels are [labels, 5] for each picture: kind, left, top, right, bottom in pixels."""
    bins, logits, centres, strides = network.raw(images)
    boxes = corners(bins, centres, strides)
    wanted = torch.zeros_like(logits)
    parts = []
    for i, label in enumerate(labels):
        if not len(label):
            continue
        kinds, sides = label[:, 0].long(), label[:, 1:]
        chosen, strength = assign(logits[i].sigmoid(), boxes[i], centres, kinds, sides)
        places = (chosen >= 0).nonzero()[:, 0]
        target, weight = sides[chosen[places]], strength[places]
        wanted[i, places, kinds[chosen[places]]] = weight
        distances = torch.cat([centres[places] - target[:, :2], target[:, 2:] - centres[places]], 1)
        distances = (distances / strides[places, None]).clamp(0, BINS - 1.01)
        parts.append(torch.stack([((1 - ciou(boxes[i, places], target)) * weight).sum(),
                                  (_of_bins(bins[i, places], distances) * weight).sum()]))  # fmt: skip
    total = wanted.sum().clamp_min(1)
    of_kinds = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    of_boxes, of_bins = torch.stack(parts).sum(0) if parts else bins.sum() * torch.zeros(2)
    return (_GAINS[0] * of_boxes + _GAINS[1] * of_kinds + _GAINS[2] * of_bins) / total


def _of_bins(bins: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy with the two bins next to each distance, by their nearness."""
    left = distances.long()
    share = left + 1 - distances
    flat = bins.reshape(-1, BINS)
    losses = [F.cross_entropy(flat, (left + i).reshape(-1), reduction="none").view_as(distances) for i in (0, 1)]
    return (losses[0] * share + losses[1] * (1 - share)).mean(1)
