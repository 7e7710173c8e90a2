"""Moments of the layers of a pruned network against the dense one, layer by layer, in one pass over both.

    for stage in streamed_moments(dense, pruned, layers, kept, samples):
        for layer, moments in stage: ...      write new weights before the next stage is asked for

Both networks stand at the same cut. The dense block ahead is run once, for the targets of its layers; the pruned one up
to each layer, with what the layers before it were given meanwhile. So the cost is linear in depth: one run of the dense
network, about three of the pruned one, and memory for two cuts.

Targets make up for what is upstream. Where a layer's output is added to another value s, as at the end of a residual
branch, it is fitted to what the sum lacks:

    z = z_dense + s_dense - s_pruned
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.following import Follow, dense_to_pruned, follow
from onnxprune.graph.linear import Linear, Matrix
from onnxprune.graph.operators import operator_of
from onnxprune.graph.stacks import Numbers
from onnxprune.runtime.probe import concrete_shapes
from onnxprune.runtime.statistics import Moments
from onnxprune.runtime.stream.cursor import Cursor, Values, needed_nodes
from onnxprune.runtime.stream.cuts import Block, common_blocks, operands
from onnxprune.runtime.stream.gather import Batches
from onnxprune.runtime.stream.rows import Grid, Read, Routed, names_read, what_is_read
from onnxprune.runtime.stream.store import Store
from onnxprune.runtime.stream.sums import RowSums, rows_read

FOLDS = 4
HELD_EVERY = 8
_TARGETS_IN_MEMORY = 64 << 20  # bytes of the targets of a block
_SUMS_IN_MEMORY = 64 << 20  # and of the sums of the layers that are fitted together

Array = npt.NDArray[Any]
Rows = Mapping[str, npt.NDArray[np.int64]]
"""By weight name, the outputs of the dense layer that the pruned one still has."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer of the pruned network, the same of the dense one, and what its output is added to.

    Attributes:
        pruned, dense: The layer.
        rows: The dense layer's outputs that are left; None for all.
        shortcut: Name of the other operand of the sum; None where there is none.
        scale: What the layer's outputs are multiplied by before the sum, shape [outputs].
        mix: What the layer should put out instead of these rows, [outputs, outputs of the dense layer], times what
            lies behind the dense layer; None for the rows. See `attention`.
        experts: Of a stack of matrices, the dense layer's that are left; None for all.
    """

    pruned: Linear
    dense: Linear
    rows: npt.NDArray[np.int64] | None
    shortcut: str | None
    scale: Matrix
    mix: Matrix | None = None
    experts: npt.NDArray[np.int64] | None = None

    @staticmethod
    def of(
        pruned: Linear, dense: Linear, rows: npt.NDArray[np.int64] | None, mix: Matrix | None = None,
        experts: npt.NDArray[np.int64] | None = None,
    ) -> Pair:  # fmt: skip
        """Pair two layers."""
        if pruned.stack is not None:  # what follows it is another number for each expert
            return Pair(pruned, dense, rows, None, np.ones(1), experts=experts)
        last, shortcut = _sum_behind(pruned)
        other = _sum_behind(dense)[1]
        known = shortcut if shortcut is not None and shortcut == other else None
        return Pair(pruned, dense, rows, known, last.scale, mix)

    def left(self, output: Array) -> Array:
        """What is left of a value of the shape of the dense layer's output."""
        if self.mix is not None:
            moved = np.moveaxis(output, self.pruned.result_axis, -1) @ self.mix.T.astype(output.dtype)
            return np.moveaxis(moved, -1, self.pruned.result_axis)
        if self.rows is None:
            return output
        return np.take(output, self.rows, axis=self.pruned.result_axis)

    def to_pruned(self) -> tuple[Matrix, Matrix]:
        """Return factor and offset, each [g, O]: the pruned layer should give factor * left(Z_dense) + offset."""
        factor, offset = dense_to_pruned(self.dense, self.pruned, self.rows)
        if self.mix is None or self.rows is None:
            return factor, offset
        *_, last = follow(self.dense)
        shift = last.shift / last.scale
        return factor, offset + factor * (self.mix @ shift - shift[self.rows]).reshape(factor.shape)


Target = tuple[Array, Array | None, Numbers | None]
"""Rows of what a dense layer gives for a batch, of what that is added to, and the experts of the rows."""

Targets = dict[Pair, list[Target]]
"""By layer, for each batch."""

IsKnown = Callable[[Sequence[Pair]], bool]
"""Whether layers that lie side by side have their final numbers already."""


def with_other_rows(
    dense: ir.Model, pruned: ir.Model, layers: Sequence[tuple[Linear, Linear]], samples: Batches
) -> set[ir.Value]:
    """The outputs of pruned layers that multiply fewer rows than the dense ones, because units of these are gone.

    A product along time, for example, has a row for each feature. Sums over other rows tell nothing of each other.

    Args:
        dense, pruned: The models.
        layers: Each layer of the pruned model with that of the dense one.
        samples: Calibration inputs.
    """
    feeds = samples.feeds[0]
    before = concrete_shapes(dense, feeds, [layer.data for _, layer in layers])
    after = concrete_shapes(pruned, feeds, [layer.data for layer, _ in layers])
    reshaped: set[ir.Value] = set()
    for layer, other in layers:
        shapes = before.get(other.data), after.get(layer.data)
        if shapes[0] is not None and shapes[1] is not None:
            rows = [[n for axis, n in enumerate(s) if axis != layer.data_axis % len(s)] for s in shapes if s]
            if rows[0] != rows[-1]:
                reshaped.add(layer.output)
        if layer.stack is not None and layer.stack.picks is None and layer.groups != other.groups:
            reshaped.add(layer.output)
    return reshaped


def streamed_moments(
    dense: ir.Model, pruned: ir.Model, pairs: Sequence[Pair], samples: Batches, known: IsKnown = lambda stage: False
) -> Iterator[list[tuple[Pair, list[Moments]]]]:
    """Yield the layers of the pruned network in order, those that lie side by side together, with their moments.

    Args:
        dense: The model before pruning.
        pruned: The model after; its layers may be given other numbers whenever a stage was yielded.
        pairs: Its layers that are looked at.
        samples: Calibration inputs. See `is_held` for how they are divided.
        known: Whether nobody asks for the moments of a stage: it is yielded with empty lists.
    """
    blocks = common_blocks(dense, pruned, samples.sizes(dense))
    one, two = Cursor(dense, blocks[0], samples.feeds), Cursor(pruned, blocks[1], samples.feeds)
    of_node = {pair.pruned.node: pair for pair in pairs}
    for block in blocks[1]:
        inside = [of_node[node] for node in block.nodes if node in of_node]
        if inside:
            yield from _in_block(block, inside, one, two, samples, known)
        else:
            one.skip()
        two.skip()


def is_held(number: int, count: int) -> bool:
    """Whether a batch is held back from the fits of units: of eight the last one.

    Args:
        number: Of the batch, from 0.
        count: Of all batches; where there are fewer than eight the last one is held back.
    """
    last = HELD_EVERY - 1 if count >= HELD_EVERY else count - 1
    return number % HELD_EVERY == last


def _in_block(
    block: Block, pairs: Sequence[Pair], dense: Cursor, pruned: Cursor, samples: Batches, known: IsKnown
) -> Iterator[list[tuple[Pair, list[Moments]]]]:
    stages = _stages(block, pairs)
    targets = _targets(pairs, dense, samples, {pair for stage in stages if not known(stage) for pair in stage})
    done: set[ir.Node] = set()
    here = {str(out.name) for node in block.nodes for out in node.outputs} | set(pruned.state[0])
    for stage in stages:
        if known(stage):
            yield [(pair, []) for pair in stage]
        else:
            ready = {p for p in stage if p.shortcut in here and _settled(block, str(p.shortcut), pairs, done)}
            yield _moments(stage, ready, targets, pruned, samples)
        done |= {pair.pruned.node for pair in stage}


def _moments(
    stage: Sequence[Pair], ready: Set[Pair], targets: Targets, pruned: Cursor, samples: Batches
) -> list[tuple[Pair, list[Moments]]]:
    """The moments of layers side by side, those of the batches that are held back last; their targets are used up."""
    names = [n for pair in stage for n in names_read(pair.pruned)] + [str(pair.shortcut) for pair in ready]
    wide = Store(0)  # on disk from the first batch on
    parts = {False: RowSums(wide), True: RowSums(wide)}  # by whether they are held back
    for number, values in enumerate(pruned.run(list(dict.fromkeys(names)))):
        part, rows = parts[is_held(number, len(samples.feeds))], dict[Hashable, Read]()
        for pair in stage:
            key, data = rows_read(pair.pruned), what_is_read(pair.pruned, values)
            grid = samples.grid(pair.pruned, data, number)
            if key not in rows:
                rows[key] = _both_see(samples.inputs(pair.pruned, data, grid, number), targets[pair][number][2])
                part.add_inputs(key, rows[key])
            z = _aims(pair, values, targets[pair][number], samples, grid, number, compensate=pair in ready)
            part.add_targets(pair, rows[key], z)
    for pair in stage:
        del targets[pair]
    store = Store(_SUMS_IN_MEMORY)
    for part in parts.values():
        part.to_store(store)
    keys = {pair: rows_read(pair.pruned) for pair in stage}
    return [(p, [part.moments(key, p) for part in parts.values() if key in part]) for p, key in keys.items()]


def _both_see(rows: Read, dense: Numbers | None) -> Read:
    """The rows of the pruned network; of those that are routed, the ones that the dense one gives the same expert."""
    return rows.where(dense) if isinstance(rows, Routed) and dense is not None else rows


def _targets(pairs: Sequence[Pair], dense: Cursor, samples: Batches, wanted: Set[Pair]) -> Targets:
    """For each layer that is wanted and each batch: rows of what the dense layer gives, and of what it is added to.

    The block is run with the same outputs whatever is wanted, for other outputs may change the last bit of values.
    """
    made = {str(out.name) for node in dense.block.nodes for out in node.outputs} | set(dense.state[0])
    names = [n for pair in pairs for n in (*names_read(pair.dense), str(pair.dense.output.name))]
    names += [pair.shortcut for pair in pairs if pair.shortcut in made]
    targets: Targets = {pair: [] for pair in pairs}
    store = Store(_TARGETS_IN_MEMORY)
    for number, values in enumerate(dense.advance(list(dict.fromkeys(names)))):
        for pair in (pair for pair in pairs if pair in wanted):
            data = what_is_read(pair.dense, values)
            grid = samples.grid(pair.pruned, data, number)
            shortcut = values.get(pair.shortcut or "")
            s = None if shortcut is None else samples.outputs(pair.pruned, pair.left(shortcut), grid, number)
            z = store.held(_dense_rows(pair, data, values, samples, grid, number))
            targets[pair].append((z, None if s is None else store.held(s), _experts(pair, data, grid)))
    return targets


def _experts(pair: Pair, data: Read, grid: Grid) -> Numbers | None:
    """The expert of each row of the dense network, by its number in the pruned one; None where rows have none."""
    if not isinstance(data, Routed):
        return None
    expert = data.taken(grid[0]).expert
    if pair.experts is None:
        return expert
    new = np.full(data.experts, -1, np.int64)
    new[pair.experts] = np.arange(len(pair.experts))
    return np.where(expert >= 0, new[expert], -1)


def _dense_rows(pair: Pair, data: Read, values: Values, samples: Batches, grid: Grid, number: int) -> Array:
    """Z of the dense layer at the outputs that are left, [g, rows, O], before an activation that its node applies."""
    if not pair.dense.activation:
        return samples.outputs(pair.pruned, pair.left(values[str(pair.dense.output.name)]), grid, number)
    weight, bias = (x.astype(np.float32) for x in (pair.dense.matrix(), pair.dense.bias()))
    rows = samples.inputs(pair.dense, data, grid, number)
    assert not isinstance(rows, Routed)
    z = np.matmul(rows, weight.transpose(0, 2, 1)) + bias[:, None]
    flat = z.transpose(1, 0, 2).reshape(z.shape[1], -1)
    kept = flat if pair.rows is None else flat[:, pair.rows]
    return np.ascontiguousarray(kept.reshape(len(kept), pair.pruned.groups, -1).transpose(1, 0, 2))


def _aims(
    pair: Pair, values: Values, target: Target, samples: Batches, grid: Grid, number: int, *,
    compensate: bool,
) -> Array:  # fmt: skip
    """What the pruned layer should give for a batch, [g, rows, O]."""
    z, shortcut, _ = target
    factor, offset = pair.to_pruned()
    if (factor != 1).any() or offset.any():  # of a head with a vocabulary it is large
        z = z * factor[:, None].astype(np.float32) + offset[:, None].astype(np.float32)
    if compensate and shortcut is not None:
        other = values[str(pair.shortcut)]
        lack = shortcut - samples.outputs(pair.pruned, other, grid, number)
        scale = pair.scale.reshape(factor.shape)
        usable = np.abs(scale) > 1e-3 * np.abs(scale).max()
        z = z + lack * np.where(usable, 1 / np.where(usable, scale, 1), 0).astype(np.float32)[:, None]
    return z


def _sum_behind(layer: Linear) -> tuple[Follow, str | None]:
    """The end of what scales and shifts a layer's outputs, and what that is added to; None where it is not."""
    chain = list(follow(layer))
    value = layer.output
    for step in chain[1:]:
        value = next(out for node, _ in value.uses() for out in node.outputs if out.name == step.name)
    uses = list(value.uses())
    if len(uses) != 1 or not operator_of(uses[0][0]).adds or len(uses[0][0].inputs) != 2:
        return chain[-1], None
    node, index = uses[0]
    other = node.inputs[1 - index]
    if other is None or other is value or other.const_value is not None:
        return chain[-1], None
    return chain[-1], str(other.name)


def _stages(block: Block, pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Group layers by how many of them lie before each, along the longest path; first stage first."""
    of_node = {pair.pruned.node: pair for pair in pairs}
    depth: dict[ir.Value, int] = {}
    by_level: dict[int, list[Pair]] = {}
    for node in block.nodes:
        level = max((depth.get(v, 0) for v in operands(node)), default=0)
        if node in of_node:
            by_level.setdefault(level, []).append(of_node[node])
            level += 1
        depth.update(dict.fromkeys(node.outputs, level))
    return [by_level[level] for level in sorted(by_level)]


def _settled(block: Block, shortcut: str, pairs: Sequence[Pair], done: set[ir.Node]) -> bool:
    """Whether all layers that a value depends on have their final numbers."""
    behind = set(needed_nodes(block.nodes, {shortcut}))
    return all(pair.pruned.node in done for pair in pairs if pair.pruned.node in behind)
