"""Extents of free dimensions that a product, a Reshape or an added constant settles, however far behind the input.

An exporter may leave height and width of an image free though a Flatten and a product behind it allow one size alone,
or a table of positions that is added to the patches. The width that arrives there grows with the extent, so bisection
finds the extent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxprune.graph.dims import Sizes, dim_name, graph_inputs
from onnxprune.graph.layers import data_width
from onnxprune.graph.operators import operator_of
from onnxprune.graph.reshapes import has_places, shape_and_target
from onnxprune.graph.shapes import Probe, probe_at

_MOST_WALKS = 160  # inferences of the whole model
_MOST_DEMANDS = 4
_LARGEST = 1 << 16
_CHANNELS = (3, 1, 4, 2)  # of images, the likeliest first
_PLATEAU = 16  # extents that give the same width, of which the roundest is taken


@dataclass(frozen=True)
class _Demand:
    """A value whose extent over some axes together is fixed by what reads it.

    Attributes:
        value: The value.
        axes: The axes.
        width: The product of their extents that is demanded.
    """

    value: ir.Value
    axes: tuple[int, ...]
    width: int

    def seen(self, probe: Probe) -> int | None:
        """Return what arrives at a setting, None where it is not known."""
        shape = probe.shapes.get(self.value)
        if shape is None or len(shape) <= max(self.axes):
            return None
        extents = [shape[axis] for axis in self.axes]
        return None if None in extents else math.prod(int(extent or 0) for extent in extents)


@dataclass
class _Search:
    """The inferences of one search, each made once."""

    model: ir.Model
    applied: Callable[[Sizes], Sizes]
    walks: dict[tuple[tuple[str, int], ...], Probe] = field(default_factory=dict)

    def at(self, sizes: Sizes) -> Probe | None:
        """Return what is known at a setting, None when no more inferences may be made."""
        key = tuple(sorted(self.applied(sizes).items()))
        if key not in self.walks:
            if len(self.walks) == _MOST_WALKS:
                return None
            self.walks[key] = probe_at(self.model, dict(key))
        return self.walks[key]


def settled_by_products(
    model: ir.Model, sizes: Sizes, free: Sequence[str], batches: frozenset[str], applied: Callable[[Sizes], Sizes]
) -> dict[str, int]:
    """Return extents at which products and Reshapes get the widths that they demand; empty where none are found.

    Args:
        model: The model.
        sizes: A setting that contradicts the graph.
        free: Dimensions that may be set.
        batches: Those of them that count samples, which products say nothing about.
        applied: Puts in what else is known of the dimensions.
    """
    search, settled = _Search(model, applied), dict[str, int]()
    for _ in range(_MOST_DEMANDS):
        names = [name for name in free if name not in settled and name not in batches]
        probe = search.at({**sizes, **settled})
        demand = _first_misfit(model, probe) if probe is not None and names else None
        if demand is None:
            break
        before = probe.failures if probe is not None else 0
        for together, others in _ways(model, names):
            extent = _bisect(search, demand, {**sizes, **settled, **others}, together)
            tried = {**settled, **others, **dict.fromkeys(together, extent or 0)}
            after = search.at({**sizes, **tried}) if extent else None
            # Inference does not compare channels: that they fit takes no failure away.
            alone = len(together) == 1 and not others
            if after is not None and (after.failures < before or alone and after.failures == before):
                settled = tried
                break
        else:
            break
    return settled


def _first_misfit(model: ir.Model, probe: Probe) -> _Demand | None:
    """Return the first demand on a value that a setting does not meet."""
    for node in model.graph:
        for demand in _demands(node, probe):
            seen = demand.seen(probe)
            if seen is not None and seen != demand.width:
                return demand
    return None


def _demands(node: ir.Node, probe: Probe) -> Iterator[_Demand]:
    """Yield what a node demands: the width of a constant weight, as many numbers as a Reshape has places for, or as
    many positions as an added constant has.
    """
    for index, value in enumerate(node.inputs):
        shape = probe.shapes.get(value) if value is not None else None
        width = data_width(node, index, len(shape)) if shape else None
        if value is not None and shape and width is not None:
            yield _Demand(value, (width[0] % len(shape),), width[1])
    yield from _added(node, probe)
    extents, target = shape_and_target(node, probe.shapes, probe.data)
    kept = [axis for axis, entry in enumerate(target) if entry == 0]
    fixed = math.prod(entry for entry in target if entry > 0)
    if target[:1] == [-1] and not has_places(extents, target):
        kept, target = [*kept, 0], target[1:]  # samples, each of which fills the rest
    axes = tuple(axis for axis in range(len(extents)) if axis not in kept)
    if -1 not in target and axes and node.inputs[0] is not None:
        yield _Demand(node.inputs[0], axes, fixed)


def _added(node: ir.Node, probe: Probe) -> Iterator[_Demand]:
    """Yield the extents of a constant with several axes that is added, where neither it nor the other is repeated."""
    if operator_of(node).pointwise != "broadcast" or len(node.inputs) != 2:
        return
    for value, other in (node.inputs, node.inputs[::-1]):
        if value is None or other is None or not _is_fixed(other) or _is_fixed(value):
            continue
        shape, fixed = probe.shapes.get(value) or (), probe.shapes.get(other) or ()
        for back in range(2, min(len(shape), len(fixed)) + 1):
            extent = fixed[-back]
            if extent is not None and extent > 1 and shape[-back] not in (1, None):
                yield _Demand(value, (len(shape) - back,), extent)


def _is_fixed(value: ir.Value) -> bool:
    """Whether a value is a constant, or picked from one by constants, as a table of positions is."""
    node = value.producer()
    return value.const_value is not None or (
        node is not None and all(v is not None and v.const_value is not None for v in node.inputs)
    )


def _ways(model: ir.Model, names: Sequence[str]) -> Iterator[tuple[list[str], Mapping[str, int]]]:
    """Yield dimensions that get one extent together, and extents of others: sides of images first, then each alone."""
    channels: list[str] = []
    sides: list[str] = []
    for value in graph_inputs(model):
        axes = [dim_name(value, i) if not isinstance(d, int) else None for i, d in enumerate(value.shape or ())]
        if len(axes) >= 4:
            channels += [name for name in axes[1:2] if name is not None and name in names]
            sides += [name for name in axes[2:] if name is not None and name in names]
    sides = [name for name in dict.fromkeys(sides) if name not in channels]
    if sides:
        for number in _CHANNELS if channels else (0,):
            yield sides, dict.fromkeys(channels, number)
    for name in names:
        yield [name], {}
    if len(names) > 1:
        yield list(names), {}
        for name in names:
            yield [name], {other: 1 for other in names if other != name}


def _bisect(search: _Search, demand: _Demand, sizes: Sizes, together: Sequence[str]) -> int | None:
    """Return the roundest extent at which the demanded width arrives, None where there is none."""

    def width(extent: int) -> int:
        probe = search.at({**sizes, **dict.fromkeys(together, extent)})
        seen = demand.seen(probe) if probe is not None else None
        return -1 if seen is None else seen  # a window that is wider than its input

    low, high = 0, 1
    while high < _LARGEST and width(high) < demand.width:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if width(middle) >= demand.width else (middle, high)
    fitting: list[int] = []
    while len(fitting) < _PLATEAU and width(high + len(fitting)) == demand.width:
        fitting.append(high + len(fitting))
    return max(fitting, key=lambda n: n & -n, default=None)
