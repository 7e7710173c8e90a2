"""Small decoder language models over int64 tokens [batch, sequence]; outputs are logits [batch, sequence, vocabulary].

Between them: tied embeddings, causal masks in three writings, rotary positions, RMSNorm, gated MLPs, grouped-query
attention in three writings, and a mixture of experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformers import VOCABULARY, FusedAttention, Mlp, merge_heads, split_heads


class CausalAttention(nn.Module):
    """GPT-2's: one fused projection cut by split, a stored triangular mask sliced to the sequence."""

    mask: Tensor

    def __init__(self, width: int, heads: int, longest: int = 32) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.tril(torch.ones(longest, longest)).view(1, 1, longest, longest))

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.shape[1]
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).split(self.width, dim=2))
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        scores = scores.masked_fill(self.mask[:, :, :sequence, :sequence] == 0, float("-inf"))
        return self.out(merge_heads(scores.softmax(-1) @ value))


class GptBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """Learned positions; the output projection is the token embedding, transposed."""

    def __init__(self, width: int = 48, heads: int = 4, longest: int = 32) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(longest, width)
        self.blocks = nn.Sequential(*(GptBlock(width, heads) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([-right, left], -1)


def rotary_angles(sequence: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [sequence, size] of the rotary embedding (Su et al. 2021), halves layout as in Llama."""
    frequencies = 10000.0 ** (-torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(sequence).float(), frequencies)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """[batch, kv heads, sequence, size] -> [batch, kv heads * times, sequence, size], each head repeated in place."""
    batch, heads, sequence, size = x.shape
    return x[:, :, None].expand(batch, heads, times, sequence, size).reshape(batch, heads * times, sequence, size)


class GroupedQueryAttention(nn.Module):
    """Several query heads share one key and value head.

    `style` is how that is written: "repeat" (Llama: expand and reshape), "broadcast" (a MatMul over five axes) or
    "sdpa" (left to scaled_dot_product_attention).
    """

    def __init__(self, width: int, heads: int, kv_heads: int, style: str, rotary: bool = True) -> None:
        super().__init__()
        size = width // heads
        self.heads, self.kv_heads, self.style, self.rotary = heads, kv_heads, style, rotary
        self.query, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, kv_heads * size, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        query = split_heads(self.query(x), self.heads)
        key, value = split_heads(self.key(x), self.kv_heads), split_heads(self.value(x), self.kv_heads)
        if self.rotary:
            cos, sin = rotary_angles(x.shape[1], query.shape[-1])
            query, key = query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
        return self.out(merge_heads(getattr(self, f"_{self.style}")(query, key, value)))

    def _repeat(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        times = self.heads // self.kv_heads
        key, value = repeat_heads(key, times), repeat_heads(value, times)
        sequence, size = query.shape[-2:]
        mask = torch.triu(torch.full((sequence, sequence), -1e9), diagonal=1)
        return (query @ key.transpose(-1, -2) / size**0.5 + mask).softmax(-1) @ value

    def _broadcast(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, _, sequence, size = query.shape
        query = query.view(batch, self.kv_heads, self.heads // self.kv_heads, sequence, size)
        weights = (query @ key[:, :, None].transpose(-1, -2) * size**-0.5).softmax(-1)
        return (weights @ value[:, :, None]).flatten(1, 2)

    def _sdpa(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


class GatedMlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = RmsNorm(width), attention, RmsNorm(width), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DecoderStack(nn.Module):
    """Embedding, the given blocks, final norm, a separate output projection."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.token, self.blocks = nn.Embedding(VOCABULARY, width), nn.Sequential(*blocks)
        self.norm, self.head = RmsNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.token(tokens))))


def _grouped_query_model(style: str, rotary: bool) -> nn.Module:
    width, heads, kv_heads = 48, 6, 2
    attention = (GroupedQueryAttention(width, heads, kv_heads, style, rotary) for _ in range(2))
    return DecoderStack(width, *(LlamaBlock(width, each, GatedMlp(width, 96)) for each in attention))


def llama() -> nn.Module:
    return _grouped_query_model("repeat", rotary=True)


def gqa_broadcast() -> nn.Module:
    return _grouped_query_model("broadcast", rotary=False)


def gqa_sdpa() -> nn.Module:
    return _grouped_query_model("sdpa", rotary=False)


class MatMulExperts(nn.Module):
    """Dense routing: every expert sees every token, a softmax gate weighs them. Weights are [expert, in, out]."""

    def __init__(self, width: int, inner: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts_up = nn.Parameter(torch.zeros(experts, width, inner))
        self.experts_up_bias = nn.Parameter(torch.zeros(experts, 1, inner))
        self.experts_down = nn.Parameter(torch.zeros(experts, inner, width))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(-1)  # [batch, sequence, expert]
        hidden = F.gelu(x[:, None] @ self.experts_up + self.experts_up_bias)  # [batch, expert, sequence, inner]
        return ((hidden @ self.experts_down) * gate.transpose(1, 2)[..., None]).sum(1)


class EinsumExperts(nn.Module):
    """The same with gated experts, written with einsum."""

    def __init__(self, width: int, inner: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts_gate, self.experts_up = (nn.Parameter(torch.zeros(experts, width, inner)) for _ in range(2))
        self.experts_down = nn.Parameter(torch.zeros(experts, inner, width))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(-1)
        hidden = torch.einsum("bsw,ewi->bsei", x, self.experts_gate).sigmoid()
        hidden = hidden * torch.einsum("bsw,ewi->bsei", x, self.experts_up)
        return torch.einsum("bsei,eiw,bse->bsw", hidden, self.experts_down, gate)


def mixture_of_experts() -> nn.Module:
    width, heads = 32, 4
    first = LlamaBlock(width, FusedAttention(width, heads), MatMulExperts(width, 48, 4))
    second = LlamaBlock(width, FusedAttention(width, heads), EinsumExperts(width, 48, 4))
    return DecoderStack(width, first, LlamaBlock(width, FusedAttention(width, heads), Mlp(width, 64)), second)
