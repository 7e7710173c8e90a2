"""Attention, rotary embedding, linear attention and the causal convolution that goes with it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onnxprune.bridge.dtypes import torch_dtype
from onnxprune.bridge.registry import op


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, steps, heads * size) to (batch, heads, steps, size)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """(batch, heads, steps, size) to (batch, steps, heads * size)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _distances(q_length: int, kv_length: int, offset: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Position of the query minus that of the key: (q, kv), or (batch, 1, q, kv) for offsets per batch entry."""
    i = torch.arange(q_length, device=device).reshape(-1, 1)
    j = torch.arange(kv_length, device=device).reshape(1, -1)
    if isinstance(offset, torch.Tensor):
        return i + offset.reshape(-1, 1, 1, 1) - j
    return i + offset - j


def _bias(
    q: torch.Tensor,
    kv_length: int,
    mask: torch.Tensor | None,
    is_causal: int,
    offset: int | torch.Tensor,
    window: tuple[int, int],
    nonpad: torch.Tensor | None,
) -> torch.Tensor:
    """What is added to the scores: 0 or the mask's number where a query sees a key, -inf elsewhere."""
    q_length = q.shape[2]
    bias = q.new_zeros(q_length, kv_length)
    if mask is not None:
        if mask.shape[-1] < kv_length:
            blank = False if mask.dtype == torch.bool else float("-inf")
            mask = F.pad(mask, (0, kv_length - mask.shape[-1]), value=blank)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        bias = bias + mask
    distance = _distances(q_length, kv_length, offset, q.device)
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if is_causal:
        hidden = hidden | (distance < 0)
    left, right = window
    if left >= 0:
        hidden = hidden | (distance > left)
    if right >= 0:
        hidden = hidden | (-distance > right)
    bias = bias + torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, float("-inf"))
    if nonpad is not None:
        padding = torch.arange(kv_length, device=q.device) >= nonpad.reshape(-1, 1, 1, 1)
        bias = bias + torch.zeros_like(padding, dtype=q.dtype).masked_fill(padding, float("-inf"))
    return bias


@op("Attention", fixed=(3, 6), multiple=True)
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    past_key: torch.Tensor | None = None,
    past_value: torch.Tensor | None = None,
    nonpad_kv_seqlen: torch.Tensor | None = None,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """softmax(scale Q K' + bias) V with grouped heads, a cache, causal and window masks, and a soft cap.

    3-D inputs hold their heads in the last axis. Gives the result, the caches, and the scores at the stage asked for.
    A query that sees no key gives zeros.
    """
    packed = q.dim() == 3
    if packed:
        q, k, v = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    present_key = k if past_key is None else torch.cat([past_key, k], dim=2)
    present_value = v if past_value is None else torch.cat([past_value, v], dim=2)
    offset: int | torch.Tensor = 0 if past_key is None else past_key.shape[2]
    if past_key is None and nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen - q.shape[2]
    window = (left_window_size, right_window_size)
    bias = _bias(q, present_key.shape[2], attn_mask, is_causal, offset, window, nonpad_kv_seqlen)
    groups = q.shape[1] // k.shape[1]
    keys = present_key.repeat_interleave(groups, dim=1) if groups > 1 else present_key
    values = present_value.repeat_interleave(groups, dim=1) if groups > 1 else present_value
    root = torch.tensor(
        math.sqrt(1.0 / math.sqrt(q.shape[3]) if scale is None else scale), dtype=q.dtype, device=q.device
    )
    raw = torch.matmul(q * root, (keys * root).transpose(-1, -2))
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    scores = capped + bias
    weights = torch.softmax(scores, -1, dtype=None if softmax_precision is None else torch_dtype(softmax_precision))
    unseen = torch.isneginf(bias.amax(dim=-1, keepdim=True))
    weights = torch.where(unseen, torch.zeros_like(weights), weights).to(q.dtype)
    y = torch.matmul(weights, values)
    shown = (raw, capped, scores, weights)[qk_matmul_output_mode]
    return join_heads(y) if packed else y, present_key, present_value, shown


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Turn pairs of the last axis by angles: neighbours if interleaved, else first half with second half."""
    if interleaved:
        left, right = x[..., 0::2], x[..., 1::2]
        return torch.stack([cos * left - sin * right, sin * left + cos * right], dim=-1).flatten(-2)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([cos * left - sin * right, sin * left + cos * right], dim=-1)


@op("RotaryEmbedding", fixed=(3,))
def rotary_embedding(
    x: torch.Tensor,
    cos_cache: torch.Tensor,
    sin_cache: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> torch.Tensor:
    """Queries or keys turned by the angles of their positions; only the first `rotary_embedding_dim` entries."""
    heads = split_heads(x, num_heads) if x.dim() == 3 else x
    size = rotary_embedding_dim or heads.shape[-1]
    cos, sin = (c if position_ids is None else c[position_ids.to(torch.int64)] for c in (cos_cache, sin_cache))
    turned = rotate(heads[..., :size], cos.unsqueeze(1), sin.unsqueeze(1), bool(interleaved))
    y = torch.cat([turned, heads[..., size:]], dim=-1)
    return join_heads(y) if x.dim() == 3 else y


@op("LinearAttention", multiple=True)
def linear_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_state: torch.Tensor | None = None,
    decay: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    chunk_size: int = 0,
    kv_num_heads: int = 1,
    q_num_heads: int = 1,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[torch.Tensor, torch.Tensor]:
    """A recurrent state (batch, heads, d_k, d_v) that is decayed, corrected and written at every step, in float32."""
    q, k, v = split_heads(query, q_num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    q, k, v = q.float(), k.float(), v.float()
    gates = None if decay is None else split_heads(decay, kv_num_heads).float()
    rates = None if beta is None else split_heads(beta, beta.shape[-1]).float()
    state = (
        q.new_zeros(q.shape[0], kv_num_heads, k.shape[-1], v.shape[-1]) if past_state is None else past_state.float()
    )
    factor = scale or 1.0 / math.sqrt(q.shape[-1])
    rows = []
    for t in range(q.shape[2]):
        written = v[:, :, t]
        if gates is not None:
            state = state * torch.exp(gates[:, :, t]).unsqueeze(-1)
        if rates is not None:
            written = rates[:, :, t] * (written - torch.einsum("bhdm,bhd->bhm", state, k[:, :, t]))
        state = state + k[:, :, t].unsqueeze(-1) * written.unsqueeze(-2)
        seen = state.repeat_interleave(q_num_heads // kv_num_heads, dim=1)
        rows.append(factor * torch.einsum("bhd,bhdm->bhm", q[:, :, t], seen))
    y = join_heads(torch.stack(rows, dim=2)).to(query.dtype)
    return y, state.to(query.dtype if past_state is None else past_state.dtype)


@op("CausalConvWithState", multiple=True)
def causal_conv_with_state(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    past_state: torch.Tensor | None = None,
    activation: str = "none",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depthwise convolution that looks back k - 1 steps; the state is the last k - 1 inputs."""
    k = weight.shape[2]
    padded = F.pad(x, (k - 1, 0)) if past_state is None else torch.cat([past_state, x], dim=2)
    y = F.conv1d(padded, weight, bias, groups=x.shape[1])
    return F.silu(y) if activation in ("silu", "swish") else y, padded[:, :, padded.shape[2] - (k - 1) :]
