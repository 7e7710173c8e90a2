"""Sums of what layers read, by channel: block by block through the network, so that each block is read once.

moments = streamed_channel_moments(model, [("r", 1)], feeds)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.hints import Feeds
from onnxprune.graph.measuring import Builder
from onnxprune.runtime.countdown import Countdown
from onnxprune.runtime.heap import trim
from onnxprune.runtime.session import make_session, run
from onnxprune.runtime.statistics import ChannelMoments, ChannelSums, Place
from onnxprune.runtime.stream.cursor import part_of
from onnxprune.runtime.stream.cuts import Block, cut_into_blocks
from onnxprune.runtime.stream.extents import value_shapes
from onnxprune.runtime.stream.store import Store

Values = Mapping[str, npt.NDArray[Any]]


def streamed_channel_moments(
    model: ir.Model, places: Sequence[Place], feeds: Sequence[Feeds], tell: Callable[[str], None] | None = None
) -> dict[Place, ChannelMoments]:
    """Sums of values of the main graph over all axes but one, for each place.

    Only the values at the current cut are kept, of all batches, on disk where they are large.

    Args:
        model: The model; it stays as it is.
        places: Values; those that the model does not have, or of fewer axes, are left out.
        feeds: Batches.
        tell: Called with a line for each block.
    """
    names = {name for name, _ in places}
    needed = [v for node in model.graph for v in node.outputs if v.name in names]
    shapes = value_shapes(model, feeds[0], needed)
    blocks = cut_into_blocks(model, {name: math.prod(shape) for name, shape in shapes.items()})
    left = [place for place in places if len(shapes.get(place[0], ())) > place[1]]
    moments: dict[Place, ChannelMoments] = {}
    store, state = Store(), [dict(feed) for feed in feeds]
    count = Countdown("calibrate: block", len(blocks), tell)
    for block in blocks:
        count()
        made = {str(out.name) for node in block.nodes for out in node.outputs} | set(state[0])
        here = {place: len(shapes[place[0]]) for place in left if place[0] in made}
        left = [place for place in left if place not in here]
        moments |= _through(_Step(model, block, here, state[0], block.live if left else ()), state, store)
        trim()
        if not left:
            break
    return moments


def _through(step: _Step, state: list[dict[str, npt.NDArray[Any]]], store: Store) -> dict[Place, ChannelMoments]:
    """Take all batches through a block; return the sums of its values."""
    for number, values in enumerate(state):
        state[number] = store.kept(step(values), len(state))
    return step.sums.moments()


class _Step:
    """A block as a session that gives sums of values in it, and the values that are needed behind it."""

    def __init__(
        self, model: ir.Model, block: Block, places: Mapping[Place, int], example: Values, kept: Iterable[str]
    ) -> None:
        self._kept = sorted(kept)
        wanted = list(dict.fromkeys([*self._kept, *(name for name, _ in places)]))
        part = part_of(model, block.nodes, wanted, example)
        build = Builder(part)
        made = {str(v.name) for v in part.graph.outputs}
        values = {p: (self._value(build, p[0], part, example), rank) for p, rank in places.items()}
        outputs = [v for v in part.graph.outputs if v.name in self._kept]
        part.graph.outputs.clear()
        part.graph.outputs.extend(outputs)
        self._passed = [name for name in self._kept if name not in made]
        self.sums = ChannelSums(build, values)
        self._reads = [str(v.name) for v in part.graph.inputs]
        self._session = make_session(part, lean=True) if len(part.graph) else None

    @staticmethod
    def _value(build: Builder, name: str, part: ir.Model, example: Values) -> ir.Value:
        if name in build.by_output or any(v.name == name for v in part.graph.inputs):
            return build.value(name)
        array = example[name]  # at the cut before the block, and read by none of its nodes
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        value.shape = ir.Shape([None] * array.ndim)
        part.graph.inputs.append(value)
        return value

    def __call__(self, values: Values) -> dict[str, npt.NDArray[Any]]:
        """Run one batch, add its sums, and return what is kept of it."""
        kept = {name: values[name] for name in self._passed}
        if self._session is not None:
            outputs = run(self._session, {name: values[name] for name in self._reads})
            self.sums.add(outputs)
            kept |= {name: outputs[name] for name in self._kept if name not in self._passed}
        return kept
