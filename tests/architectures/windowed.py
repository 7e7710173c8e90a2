"""Attention of Segment Anything's image encoder (Kirillov et al. 2023): windows, one projection for query, key, value.

Rows x windows and heads are merged into one axis, and a score for the distance along each side of the window, which
depends on the query, is added: query and tables meet in Einsum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .transformers import Mlp

_SIDE = 4  # of a window, in patches


class WindowedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rows, self.columns = (nn.Parameter(torch.zeros(2 * _SIDE - 1, width // heads)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, _ = x.shape
        qkv = self.qkv(x).reshape(batch, side * side, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, batch * self.heads, side * side, -1).unbind(0)
        places = torch.arange(side)
        distances = places[:, None] - places[None, :] + side - 1
        tables = query.reshape(batch * self.heads, side, side, -1)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        along_rows = torch.einsum("bhwc,hkc->bhwk", tables, self.rows[distances])
        along_columns = torch.einsum("bhwc,wkc->bhwk", tables, self.columns[distances])
        both = along_rows[:, :, :, :, None] + along_columns[:, :, :, None, :]
        shares = (scores + both.reshape(batch * self.heads, side * side, side * side)).softmax(-1)
        mixed = (shares @ value).reshape(batch, self.heads, side, side, -1).permute(0, 2, 3, 1, 4)
        return self.out(mixed.reshape(batch, side, side, -1))


class Windowed(nn.Module):
    """Two layers over windows of patches; the output is [batch, classes]."""

    def __init__(self, width: int = 32, heads: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.attentions = nn.ModuleList(WindowedAttention(width, heads) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mlps = nn.ModuleList(Mlp(width, 2 * width) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            y = self.norms[2 * i](x)
            batch, side, _, width = y.shape
            count = side // _SIDE
            windows = y.view(batch, count, _SIDE, count, _SIDE, width).permute(0, 1, 3, 2, 4, 5)
            windows = attention(windows.reshape(-1, _SIDE, _SIDE, width))
            windows = windows.view(-1, count, count, _SIDE, _SIDE, width).permute(0, 1, 3, 2, 4, 5)
            x = x + windows.reshape(batch, side, side, width)
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x.mean((1, 2)))
