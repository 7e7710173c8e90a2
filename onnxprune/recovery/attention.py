"""What queries should become where positions of heads went, so that scores stay what they were.

A score is a product q . k over the positions of a head. Where only the positions S are left, the keys that are left
tell the others by least squares over the tokens of a sample:

    k - E[k]  ~  B (k_S - E[k_S]),    B = C_:S (C_SS + l I)^-1,    C the covariance of the keys of the head
    q . k     ~  (B^T q) . k_S  +  what is the same for all keys

Softmax ignores what is the same for all keys. So the layer of the queries is fitted to B^T q, and not to q_S. Where
queries and keys are turned by their place (rotary embedding) or normalised behind their layers, this does not hold, and
such attentions are left out: what a product reads is compared with what the layer put out.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.following import follow
from onnxprune.graph.linear import Linear, Matrix, linear_layers
from onnxprune.graph.operators import operator_of
from onnxprune.recovery.places import rows_left
from onnxprune.runtime.stream.cursor import Cursor, Values
from onnxprune.runtime.stream.gather import Batches
from onnxprune.structure.architecture import is_softmaxed
from onnxprune.structure.rewrite import Kept

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]

_RIDGE = 1e-4  # of the mean variance of a position
_EQUAL = 1e-3  # relative difference at which a product still reads what the layer put out


@dataclass(frozen=True, eq=False)
class Scores:
    """A product of queries and keys whose positions were cut.

    Attributes:
        node: The product, in the dense network.
        query, key: The layers that its operands come from.
    """

    node: ir.Node
    query: Linear
    key: Linear

    @property
    def names(self) -> list[str]:
        """The values that are looked at: both operands, and what both layers put out."""
        return [*(str(value.name) for value in self.node.inputs[:2] if value), _end(self.query), _end(self.key)]


def query_mixes(dense: ir.Model, kept: Kept, samples: Batches, wanted: Container[str]) -> dict[str, Matrix]:
    """What the outputs of query layers should be, by the name of the layer's weight.

    Args:
        dense: The model before pruning.
        kept: The kept indices of cut constants.
        samples: Calibration inputs.
        wanted: Names of the weights of the layers that are asked for; without a cut query among them nothing is run.

    Returns:
        Matrices [outputs left, outputs of the dense layer]: the outputs of the dense layer, bias included, times this
        are the target. Layers that are not in it keep the outputs that are left as they were.
    """
    asked = [s for s in _products(dense) if s.query.name in wanted]
    scores = [s for s in asked if rows_left(s.query, kept) is not None and rows_left(s.key, kept) is not None]
    if not scores:
        return {}
    first: Values = {}
    for _, values in _streamed(dense, samples, samples.feeds[:1], {name for s in scores for name in s.names}):
        first |= values
    heads = {s: pair for s in scores if (pair := _found(s, first)) is not None}
    if not heads:
        return {}
    sums: dict[str, Matrix] = {}
    keys = {_end(s.key): pair[1] for s, pair in heads.items()}
    for number, values in _streamed(dense, samples, samples.feeds, set(keys)):
        for name, output in values.items():
            new = _covariance(keys[name].of(output), samples.tokens[number])
            sums[name] = sums[name] + new if name in sums else new
    mixes = {s.query.name: _mix(s, pair, sums[_end(s.key)], kept) for s, pair in heads.items()}
    return {name: mix for name, mix in mixes.items() if mix is not None}


def _streamed(
    dense: ir.Model, samples: Batches, feeds: Sequence[Mapping[str, Array]], names: set[str]
) -> Iterator[tuple[int, Values]]:
    """Yield values of these names, block by block, with the number of the batch."""
    blocks = samples.blocks(dense)
    cursor = Cursor(dense, blocks, feeds)
    for block in blocks:
        made = [str(out.name) for node in block.nodes for out in node.outputs if out.name in names]
        if made:
            yield from enumerate(cursor.advance(made))
        else:
            cursor.skip()


def _products(dense: ir.Model) -> Iterator[Scores]:
    """The products of queries and keys of which both come from layers."""
    layers = {layer.output: layer for layer in linear_layers(dense)[0]}
    for node in dense.graph:
        if not operator_of(node).contracts or len(node.inputs) != 2 or node.outputs[0] in layers:
            continue
        query, key = (_layer_behind(value, layers) for value in node.inputs)
        if query is not None and key is not None and is_softmaxed(node.outputs[0]):
            yield Scores(node, query, key)


def _layer_behind(value: ir.Value | None, layers: Mapping[ir.Value, Linear]) -> Linear | None:
    """The layer that the first operand of each operator leads to; None where another product comes first."""
    while value is not None and value not in layers:
        node = value.producer()
        if node is None or operator_of(node).contracts:
            return None
        value = next((v for v in node.inputs if v is not None and v.const_value is None), None)
    layer = None if value is None else layers[value]
    return layer if layer is not None and layer.groups == 1 and not layer.activation and not layer.is_conv else None


def _end(layer: Linear) -> str:
    """The name of the last value behind a layer that only scales and shifts its outputs."""
    *_, last = follow(layer)
    return last.name


@dataclass(frozen=True)
class _Heads:
    """Where the heads of an operand lie among the outputs of a layer.

    Attributes:
        first: The output that they begin at.
        count: How many there are.
        size: Positions in each.
    """

    first: int
    count: int
    size: int

    def of(self, output: Array) -> Array:
        """What the layer put out as [samples, tokens, heads, size]."""
        flat = output[..., self.first : self.first + self.count * self.size]
        return flat.reshape(*output.shape[:-1], self.count, self.size)


def _found(scores: Scores, values: Values) -> tuple[_Heads, _Heads] | None:
    """Where queries and keys lie; None where the product reads something else than what the layers put out."""
    first, second, query, key = (values[name] for name in scores.names)
    if first.ndim != 4 or second.ndim != 4 or query.ndim != 3 or key.ndim != 3:
        return None
    queries = _placed(first.transpose(0, 2, 1, 3), query)
    keys = _placed(second.transpose(0, 3, 1, 2), key)
    if queries is None or keys is None or queries.count % keys.count:
        return None
    return queries, keys


def _placed(operand: Array, output: Array) -> _Heads | None:
    """Find the heads of an operand [samples, tokens, heads, size] among outputs [samples, tokens, outputs].

    The operand may be a multiple, and several of its heads may read one of the layer (grouped queries).
    """
    *places, count, size = operand.shape
    if list(output.shape[:-1]) != places or output.shape[-1] % size:
        return None
    for shared in (n for n in range(1, count + 1) if count % n == 0):
        for first in range(0, output.shape[-1] - count // shared * size + 1, size):
            heads = _Heads(first, count // shared, size)
            part = np.repeat(heads.of(output), shared, axis=2)
            norm = float(np.vdot(part, part))
            ratio = float(np.vdot(part, operand)) / norm if norm > 0 else 0.0
            gap = float(np.abs(operand - ratio * part).max())
            if ratio > 0 and gap <= _EQUAL * float(np.abs(operand).max()):
                return heads
    return None


def _covariance(keys: Array, tokens: Array | None) -> Matrix:
    """The sum over samples and tokens of products of keys less their mean in the sample, [heads, size, size].

    Args:
        keys: [samples, tokens, heads, size].
        tokens: Which tokens count, [samples, tokens]; None for all.
    """
    weight = np.ones(keys.shape[:2]) if tokens is None else tokens[:, : keys.shape[1]].astype(np.float64)
    counted = keys.astype(np.float64) * weight[:, :, None, None]
    mean = counted.sum(axis=1, keepdims=True) / np.maximum(weight.sum(axis=1), 1)[:, None, None, None]
    centred = (keys - mean) * weight[:, :, None, None]
    by_head = centred.transpose(2, 0, 1, 3).reshape(keys.shape[2], -1, keys.shape[3])
    return np.matmul(by_head.transpose(0, 2, 1), by_head)


def _mix(scores: Scores, heads: tuple[_Heads, _Heads], covariance: Matrix, kept: Kept) -> Matrix | None:
    """The target as a matrix [outputs left, outputs]; None where queries and keys lost no position, or other ones."""
    queries, keys = heads
    rows, key_rows = rows_left(scores.query, kept), rows_left(scores.key, kept)
    if rows is None or key_rows is None:
        return None
    width = scores.query.to_matrix(np.empty(scores.query.weight.shape.numpy(), bool)).shape[1]  # type: ignore[union-attr]
    mix = np.zeros((len(rows), width))
    mix[np.arange(len(rows)), rows] = 1
    changed = False
    shared = queries.count // keys.count
    for head in range(queries.count):
        left = _positions(rows, queries, head)
        if len(left) in (0, queries.size):
            continue
        if not np.array_equal(left, _positions(key_rows, keys, head // shared)):
            return None
        start = queries.first + head * queries.size
        mix[np.isin(rows, start + left), start : start + queries.size] = _told(covariance[head // shared], left)
        changed = True
    return mix if changed else None


def _positions(rows: Sequence[int] | Index, heads: _Heads, head: int) -> Index:
    """Which positions of a head are left."""
    inside = np.asarray(rows) - heads.first - head * heads.size
    return inside[(inside >= 0) & (inside < heads.size)]


def _told(covariance: Matrix, left: Index) -> Matrix:
    """B^T: what the positions that are left tell of all, [left, size]."""
    gram = covariance[np.ix_(left, left)]
    ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), np.finfo(np.float64).tiny)
    told: Matrix = np.linalg.solve(gram + ridge * np.eye(len(left)), covariance[left]).astype(np.float64)
    told[:, left] = np.eye(len(left))
    return told
