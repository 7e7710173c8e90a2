"""Sequences of tensors as Python tuples, where exporters put them between tensor operators, and TfIdfVectorizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from onnxprune.bridge.registry import op

Tensors = tuple[torch.Tensor, ...]


def _position(position: Any) -> int:
    return int(position[0] if isinstance(position, list) else position)


@op("SequenceEmpty")
def sequence_empty(dtype: int = 1) -> Tensors:
    """No tensors."""
    return ()


@op("SequenceConstruct")
def sequence_construct(*tensors: torch.Tensor) -> Tensors:
    """A sequence of the given tensors."""
    return tensors


@op("SequenceInsert", host=(2,))
def sequence_insert(sequence: Tensors, tensor: torch.Tensor, position: Any = None) -> Tensors:
    """With a tensor put in, at the end if no position is given."""
    items = list(sequence)
    place = len(items) if position is None else _position(position)
    items.insert(place + len(items) if place < 0 else place, tensor)
    return tuple(items)


@op("SequenceErase", host=(1,))
def sequence_erase(sequence: Tensors, position: Any = None) -> Tensors:
    """Without one tensor, the last if no position is given."""
    items = list(sequence)
    del items[-1 if position is None else _position(position)]
    return tuple(items)


@op("SequenceAt", host=(1,))
def sequence_at(sequence: Tensors, position: Any) -> torch.Tensor:
    """One tensor."""
    return sequence[_position(position)]


@op("SequenceLength", differentiable=False)
def sequence_length(sequence: Tensors, device: torch.device | None = None) -> torch.Tensor:
    """How many tensors there are."""
    return torch.tensor(len(sequence), device=device)


@op("ConcatFromSequence")
def concat_from_sequence(sequence: Tensors, axis: int, new_axis: int = 0) -> torch.Tensor:
    """All tensors after one another, along an axis or a new one."""
    return torch.stack(sequence, dim=axis) if new_axis else torch.cat(sequence, dim=axis)


@op("SplitToSequence", host=(1,))
def split_to_sequence(x: torch.Tensor, split: Any = None, axis: int = 0, keepdims: int = 1) -> Tensors:
    """Pieces of the given sizes, of one size, or of one each (without the axis unless keepdims)."""
    if split is None:
        pieces = torch.split(x, 1, dim=axis)
        return tuple(pieces) if keepdims else tuple(piece.squeeze(axis) for piece in pieces)
    return tuple(torch.split(x, split, dim=axis))


@op("TfIdfVectorizer", differentiable=False)
def tf_idf_vectorizer(
    x: torch.Tensor,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] = (),
    weights: Sequence[float] = (),
) -> torch.Tensor:
    """How often each n-gram of a pool occurs in each row, with gaps of up to max_skip_count; TF, IDF or TFIDF."""
    grams: dict[tuple[int, ...], int] = {}
    for n, start in enumerate(ngram_counts, start=1):
        end = ngram_counts[n] if n < len(ngram_counts) else len(pool_int64s)
        for at in range(start, end, n):
            grams[tuple(pool_int64s[at : at + n])] = len(grams)
    rows = x.reshape(1, -1).tolist() if x.dim() == 1 else x.tolist()
    counts = torch.zeros(len(rows), max(ngram_indexes) + 1)
    for row, numbers in enumerate(rows):
        for n in range(min_gram_length, max_gram_length + 1):
            for skip in range(1, (max_skip_count if n > 1 else 0) + 2):
                for start in range(len(numbers) - (n - 1) * skip):
                    gram = tuple(numbers[start + i * skip] for i in range(n))
                    if gram in grams:
                        counts[row, ngram_indexes[grams[gram]]] += 1
    factor = torch.ones(counts.shape[1])
    if weights:
        for position, index in enumerate(ngram_indexes):
            factor[index] = weights[position]
    result = {"TF": counts, "IDF": (counts > 0) * factor, "TFIDF": counts * factor}[mode]
    return (result[0] if x.dim() == 1 else result).float().to(x.device)
