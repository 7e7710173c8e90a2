"""DeBERTa's attention (He et al. 2021): content and relative positions apart, batch and heads merged into one axis.

Scores of relative positions are computed for every distance, and picked by a table of distances that is expanded over
batch x heads, as the public implementation writes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .transformers import VOCABULARY, Mlp

_SPAN = 8


class DisentangledAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def _by_head(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3).contiguous()
        return x.view(-1, x.shape[2], x.shape[-1])

    def forward(self, x: Tensor, relative: Tensor, distances: Tensor) -> Tensor:
        query, key, value = self._by_head(self.query(x)), self._by_head(self.key(x)), self._by_head(self.value(x))
        scores = query @ (key / (3 * query.shape[-1]) ** 0.5).transpose(-1, -2)
        times = query.shape[0] // self.heads
        key_positions = self._by_head(self.key(relative)).repeat(times, 1, 1)
        query_positions = self._by_head(self.query(relative)).repeat(times, 1, 1)
        picked = distances.expand(query.shape[0], query.shape[1], key.shape[1])
        scores = scores + (query @ key_positions.transpose(-1, -2)).gather(-1, picked)
        scores = scores + (key @ query_positions.transpose(-1, -2)).gather(-1, picked).transpose(-1, -2)
        scores = scores.view(-1, self.heads, x.shape[1], x.shape[1]).softmax(-1).view(-1, x.shape[1], x.shape[1])
        result = (scores @ value).view(-1, self.heads, x.shape[1], value.shape[-1]).permute(0, 2, 1, 3).contiguous()
        return self.out(result.view(x.shape[0], x.shape[1], -1))


class Deberta(nn.Module):
    """Two layers that share their relative positions; the output is [batch, sequence, width]."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.token, self.relative = nn.Embedding(VOCABULARY, width), nn.Embedding(2 * _SPAN, width)
        self.attentions = nn.ModuleList(DisentangledAttention(width, heads) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mlps = nn.ModuleList(Mlp(width, 2 * width) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x, places = self.token(tokens), torch.arange(tokens.shape[1])
        distances = (places[:, None] - places[None, :] + _SPAN).clamp(0, 2 * _SPAN - 1)[None]
        for attention, norm, mlp in zip(self.attentions, self.norms, self.mlps, strict=True):
            x = norm(x + attention(x, self.relative.weight[None], distances))
            x = x + mlp(x)
        return x
