"""ONNX Runtime's own operators (com.microsoft) that its optimiser and Hugging Face exports leave in files.

Source: the ContribOperators.md of ONNX Runtime. Options that a file may ask for and that are not here raise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.bridge.ops.attention import join_heads, rotate, split_heads
from onnxprune.bridge.ops.convolution import activate, fused_conv
from onnxprune.bridge.ops.indexing import gather_nd
from onnxprune.bridge.ops.linear import gemm, trilu
from onnxprune.bridge.ops.pooling import max_pool
from onnxprune.bridge.ops.vision import grid_sample
from onnxprune.bridge.registry import MICROSOFT, op
from onnxprune.errors import ModelError


@op("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> torch.Tensor:
    """alpha A' B', where the last two axes, or the first and the batch axes, may be swapped first."""
    a, b = (x.movedim(0, -2) if swap else x for x, swap in ((a, transBatchA), (b, transBatchB)))
    a = a.transpose(-1, -2) if transA and a.dim() > 1 else a
    b = b.transpose(-1, -2) if transB and b.dim() > 1 else b
    y = torch.matmul(a, b)
    return y if alpha == 1.0 else y * alpha


@op("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    activation: str = "",
    activation_alpha: float = 0.01,
    activation_beta: float = 0.0,
    activation_gamma: float = 0.0,
    **attributes: Any,
) -> torch.Tensor:
    """Gemm, then an activation."""
    return activate(gemm(a, b, c, **attributes), activation, alpha=activation_alpha)


@op("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(
    a: torch.Tensor,
    b: torch.Tensor,
    activation: str,
    activation_alpha: float = 0.01,
    activation_axis: int = -1,
    activation_beta: float = 0.0,
    activation_gamma: float = 0.0,
    **attributes: Any,
) -> torch.Tensor:
    """Matrix product, then an activation."""
    return activate(fused_matmul(a, b, **attributes), activation, alpha=activation_alpha)


@op("BiasAdd", domain=MICROSOFT)
def bias_add(x: torch.Tensor, bias: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """x + bias + skip."""
    return x + bias + skip


@op("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(x: torch.Tensor, bias: torch.Tensor, axis: int = 1, is_inner_broadcast: int = 1) -> torch.Tensor:
    """Softmax of x + bias."""
    return torch.softmax(x + bias, dim=axis)


@op("Rfft", domain=MICROSOFT)
def rfft(x: torch.Tensor, normalized: int = 0, onesided: int = 1, signal_ndim: int = 1) -> torch.Tensor:
    """One-sided Fourier transform of the last axes: real and imaginary part last."""
    return torch.view_as_real(torch.fft.rfftn(x, dim=tuple(range(-signal_ndim, 0))))


@op("EmbedLayerNormalization", domain=MICROSOFT, fixed=(0, 1, 7, 8), multiple=True)
def embed_layer_normalization(
    input_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    word_embedding: torch.Tensor,
    position_embedding: torch.Tensor,
    segment_embedding: torch.Tensor | None,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Word + position + segment embeddings, normalised; the length of each example by its mask; and the sum itself."""
    length = input_ids.shape[1]
    positions = (
        position_embedding[:length] if position_ids is None else position_embedding[position_ids.to(torch.int64)]
    )
    total = word_embedding[input_ids.to(torch.int64)] + positions
    if segment_embedding is not None and segment_ids is not None:
        total = total + segment_embedding[segment_ids.to(torch.int64)]
    lengths = torch.zeros(input_ids.shape[0], dtype=torch.int32, device=total.device)
    if mask is not None:
        lengths = mask.sum(dim=1).to(torch.int32)
    return F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon), lengths, total


def _mask_bias(
    mask: torch.Tensor | None, batch: int, q_length: int, kv_length: int, like: torch.Tensor, low: float
) -> Any:
    """A bias from ONNX Runtime's masks: lengths (batch), or 0/1 of (batch, kv), (batch, q, kv), (batch, 1, q, kv)."""
    if mask is None:
        return 0.0
    if mask.dim() == 1 and mask.shape[0] == batch:
        seen = torch.arange(kv_length, device=like.device) < mask.reshape(-1, 1)
        seen = seen.reshape(batch, 1, 1, kv_length)
    elif mask.dim() == 2:
        seen = mask.reshape(batch, 1, 1, kv_length) != 0
    elif mask.dim() == 3:
        seen = mask.reshape(batch, 1, q_length, kv_length) != 0
    elif mask.dim() == 4:
        seen = mask[:, :, kv_length - q_length : kv_length, :kv_length] != 0
    else:
        raise ModelError(f"The bridge does not read an attention mask of shape {tuple(mask.shape)}.")
    return torch.where(seen, 0.0, low).to(like.dtype)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: Any,
    scale: float | None,
    unidirectional: int,
    low: float,
) -> torch.Tensor:
    """softmax(scale Q K' + bias) V over heads (batch, heads, steps, size), joined again."""
    scores = torch.matmul(q, k.transpose(-1, -2)) * (scale or 1.0 / math.sqrt(q.shape[-1])) + bias
    if unidirectional:
        past = k.shape[2] - q.shape[2]
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(past + 1)
        scores = torch.where(later, torch.full_like(scores, low), scores)
    return join_heads(torch.matmul(torch.softmax(scores, dim=-1), v))


@op("Attention", domain=MICROSOFT, fixed=(3, 6), multiple=True)
def attention_microsoft(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None = None,
    mask_index: torch.Tensor | None = None,
    past: torch.Tensor | None = None,
    attention_bias: torch.Tensor | None = None,
    past_sequence_length: torch.Tensor | None = None,
    num_heads: int = 1,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: tuple[int, ...] = (),
    rotary_embedding_dim: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention with one weight (inputs, Q + K + V); also gives the cache (2, batch, heads, steps, size)."""
    if do_rotary or past_present_share_buffer:
        raise ModelError("The bridge does not run com.microsoft Attention with do_rotary or a shared cache buffer.")
    projected = torch.matmul(x, weights)
    projected = projected if bias is None else projected + bias
    sizes = list(qkv_hidden_sizes) or [projected.shape[-1] // 3] * 3
    q, k, v = (split_heads(part, num_heads) for part in torch.split(projected, sizes, dim=-1))
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    total = _mask_bias(mask_index, x.shape[0], q.shape[2], k.shape[2], q, mask_filter_value)
    total = total if attention_bias is None else total + attention_bias
    y = _attend(q, k, v, total, scale, unidirectional, mask_filter_value)
    return y, torch.stack([k, v]) if k.shape == v.shape else k


@op("MultiHeadAttention", domain=MICROSOFT, fixed=(4, 8), multiple=True)
def multi_head_attention(
    query: torch.Tensor,
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
    attention_bias: torch.Tensor | None = None,
    past_key: torch.Tensor | None = None,
    past_value: torch.Tensor | None = None,
    past_sequence_length: torch.Tensor | None = None,
    cache_indirection: torch.Tensor | None = None,
    num_heads: int = 1,
    mask_filter_value: float = -10000.0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of projected queries, keys and values (packed or apart); also gives the caches."""
    if query.dim() == 5:  # (batch, steps, heads, 3, size)
        q, k, v = (query[:, :, :, i].transpose(1, 2) for i in range(3))
    else:
        q, k, v = _heads_with_bias(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    total = _mask_bias(key_padding_mask, q.shape[0], q.shape[2], k.shape[2], q, mask_filter_value)
    total = total if attention_bias is None else total + attention_bias
    return _attend(q, k, v, total, scale, unidirectional, mask_filter_value), k, v


def _heads_with_bias(
    query: torch.Tensor, key: torch.Tensor | None, value: torch.Tensor | None, bias: torch.Tensor | None, heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values by heads; the bias (Q + K + V) is added to those that are not by heads already."""
    if key is None:
        raise ModelError("The bridge does not run com.microsoft MultiHeadAttention with one packed 3-D input.")
    if key.dim() == 5:  # packed keys and values (batch, steps, heads, 2, size)
        key, value = (join_heads(key[:, :, :, i].transpose(1, 2)) for i in range(2))
    assert value is not None
    width = query.shape[-1]
    if bias is not None:
        query = query + bias[:width]
        if key.dim() == 3:
            key, value = key + bias[width : 2 * width], value + bias[2 * width :]
    q = split_heads(query, heads)
    if key.dim() == 4:
        return q, key, value
    return q, split_heads(key, heads), split_heads(value, heads)


@op("GroupQueryAttention", domain=MICROSOFT, fixed=(5, 6, 7, 8, 9), multiple=True)
def group_query_attention(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    past_key: torch.Tensor | None,
    past_value: torch.Tensor | None,
    seqlens_k: torch.Tensor,
    total_sequence_length: torch.Tensor,
    cos_cache: torch.Tensor | None = None,
    sin_cache: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    attention_bias: torch.Tensor | None = None,
    num_heads: int = 1,
    kv_num_heads: int = 1,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    scale: float | None = None,
    local_window_size: int = -1,
    softcap: float = 0.0,
    smooth_softmax: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Causal attention with grouped heads and rotary embedding. Examples of a batch have to be of equal length."""
    if smooth_softmax:
        raise ModelError("The bridge does not run com.microsoft GroupQueryAttention with smooth_softmax.")
    if key is None or value is None:
        size = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = torch.split(query, [num_heads * size, kv_num_heads * size, kv_num_heads * size], dim=-1)
    q, k, v = split_heads(query, num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    if past and past != int(seqlens_k.max()) + 1 - q.shape[2]:
        past = int(seqlens_k.max()) + 1 - q.shape[2]
    if do_rotary and cos_cache is not None and sin_cache is not None:
        at = torch.arange(past, past + q.shape[2], device=q.device)
        cos, sin, size = cos_cache[at], sin_cache[at], cos_cache.shape[-1] * 2
        q, k = (
            torch.cat([rotate(x[..., :size], cos, sin, bool(rotary_interleaved)), x[..., size:]], dim=-1)
            for x in (q, k)
        )
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key[:, :, :past], k], dim=2), torch.cat([past_value[:, :, :past], v], dim=2)
    groups = num_heads // kv_num_heads
    keys, values = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.matmul(q, keys.transpose(-1, -2)) * (scale or 1.0 / math.sqrt(q.shape[-1]))
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    scores = scores if attention_bias is None else scores + attention_bias
    distance = (
        torch.arange(q.shape[2], device=q.device).reshape(-1, 1) + past - torch.arange(k.shape[2], device=q.device)
    )
    hidden = distance < 0
    hidden = hidden | (distance >= local_window_size) if local_window_size > 0 else hidden
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return join_heads(torch.matmul(weights, values)), k, v


@op("RotaryEmbedding", domain=MICROSOFT, fixed=(1,))
def rotary_embedding_microsoft(
    x: torch.Tensor,
    position_ids: torch.Tensor,
    cos_cache: torch.Tensor,
    sin_cache: torch.Tensor,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> torch.Tensor:
    """Queries or keys turned by the angles of their positions, which count from one offset or are given each."""
    size = rotary_embedding_dim or cos_cache.shape[-1] * 2
    heads = x if x.dim() == 4 else split_heads(x, num_heads or x.shape[-1] // size)
    at = position_ids.to(torch.int64)
    if at.numel() == 1:
        at = at.reshape(1, 1) + torch.arange(heads.shape[2], device=x.device)
    cos, sin = cos_cache[at].unsqueeze(1), sin_cache[at].unsqueeze(1)
    turned = rotate(heads[..., :size], cos, sin, bool(interleaved))
    y = torch.cat([turned, heads[..., size:]], dim=-1)
    return y if x.dim() == 4 else join_heads(y)


def _unpacked(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Bytes (..., n) as their `bits`-wide numbers, lowest first: (..., columns)."""
    shifts = torch.arange(0, 8, bits, device=packed.device)
    numbers = (packed.to(torch.int64).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return numbers.flatten(-2)[..., :columns]


@op("MatMulNBits", domain=MICROSOFT, fixed=(1, 3, 4))
def matmul_nbits(
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    K: int = 0,
    N: int = 0,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int = 32,
    weight_prepacked: int = 0,
) -> torch.Tensor:
    """a times weights (N, blocks, packed bytes) of few bits with a scale, and perhaps a zero point, for each block."""
    blocks = -(-K // block_size)
    levels = _unpacked(b.reshape(N, blocks, -1), bits, block_size).to(scales.dtype)
    if zero_points is None:
        zero = torch.full((1,), float(1 << (bits - 1)), dtype=scales.dtype, device=a.device)
    elif zero_points.is_floating_point():
        zero = zero_points.reshape(N, blocks, 1)
    else:
        zero = _unpacked(zero_points.reshape(N, -1), bits, blocks).reshape(N, blocks, 1).to(scales.dtype)
    weights = (levels - zero) * scales.reshape(N, blocks, 1)
    if g_idx is not None:
        raise ModelError("The bridge does not run com.microsoft MatMulNBits with g_idx.")
    y = torch.matmul(a, weights.reshape(N, -1)[:, :K].t().to(a.dtype))
    return y if bias is None else y + bias


@op("GatherND", domain=MICROSOFT, fixed=(1,))
def gather_nd_microsoft(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Slices by tuples of indices."""
    return gather_nd(x, indices)


@op("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def nhwc_conv(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None, z: torch.Tensor | None = None, **attributes: Any
) -> torch.Tensor:
    """Convolution with channels last."""
    added = None if z is None else z.movedim(-1, 1)
    return fused_conv(x.movedim(-1, 1), w, b, added, **attributes).movedim(1, -1)


@op("NhwcMaxPool", domain=MICROSOFT, quantized=(0,), carries=(0,))
def nhwc_max_pool(x: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """MaxPool with channels last."""
    return max_pool(x.movedim(-1, 1), **attributes)[0].movedim(1, -1)


@op("CDist", domain=MICROSOFT)
def cdist(a: torch.Tensor, b: torch.Tensor, metric: str = "sqeuclidean") -> torch.Tensor:
    """Distances (N, M) of the rows of a (N, D) and b (M, D), by differences, which is exact for near rows."""
    if metric == "euclidean":
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return (a[:, None] - b[None]).square().sum(-1)


@op("Inverse", domain=MICROSOFT)
def inverse(x: torch.Tensor) -> torch.Tensor:
    """Inverses of the last two axes."""
    result: torch.Tensor = torch.linalg.inv(x)
    return result


op("Trilu", domain=MICROSOFT, host=(1,))(trilu)
op("GridSample", domain=MICROSOFT)(grid_sample)
