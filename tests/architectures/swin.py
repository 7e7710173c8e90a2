"""A small Swin transformer: attention in (shifted) windows with relative position bias, patch merging."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .transformers import Mlp


def cut_windows(x: Tensor, window: int) -> Tensor:
    """[batch, h, w, c] -> [batch * windows, window * window, c]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `cut_windows`."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def relative_position_index(window: int) -> Tensor:
    """[window ** 2, window ** 2] row numbers in a table of (2 * window - 1) ** 2 offsets."""
    axis = torch.arange(window)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offsets = points[:, :, None] - points[:, None, :] + window - 1
    return offsets[0] * (2 * window - 1) + offsets[1]


def shift_mask(size: int, window: int, shift: int) -> Tensor:
    """[windows, tokens, tokens]: -100 between tokens that are neighbours only because of the roll."""
    region = torch.zeros(1, size, size, 1)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        region[:, rows, columns] = number
    ids = cut_windows(region, window).squeeze(-1)
    return (ids[:, None, :] != ids[:, :, None]) * -100.0


class WindowAttention(nn.Module):
    index: Tensor
    mask: Tensor | None

    def __init__(self, width: int, heads: int, window: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads, self.tokens = heads, window * window
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", relative_position_index(window).flatten())
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        scores = query * (width // self.heads) ** -0.5 @ key.transpose(-2, -1)
        bias = self.bias_table[self.index].view(self.tokens, self.tokens, -1).permute(2, 0, 1)
        scores = scores + bias.unsqueeze(0)
        if self.mask is not None:
            count = self.mask.shape[0]
            scores = scores.view(-1, count, self.heads, tokens, tokens) + self.mask[None, :, None]
            scores = scores.view(-1, self.heads, tokens, tokens)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(windows, tokens, width))


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        mask = shift_mask(size, window, shift) if shift else None
        self.norm1, self.attention = nn.LayerNorm(width), WindowAttention(width, heads, window, mask)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = join_windows(self.attention(cut_windows(y, self.window)), self.window, self.size, self.size)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours side by side, normalised, projected to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Image [batch, 3, 32, 32] -> logits; 8x8 patches in 4x4 windows, then 4x4 in one."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.blocks = nn.Sequential(
            SwinBlock(width, 3, 8, 4, 0),
            SwinBlock(width, 3, 8, 4, 2),
            PatchMerging(width),
            SwinBlock(2 * width, 6, 4, 4, 0),
        )
        self.norm_out, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.patch(x).permute(0, 2, 3, 1)))
        return self.head(self.norm_out(x).mean((1, 2)))
