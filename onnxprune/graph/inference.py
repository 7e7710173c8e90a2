"""Shapes of a model at settings of its free dimensions that belong together.

The extents of inputs depend on each other in ways that symbols do not say: a mask is as long as past and sequence
together, a cache is as wide as a head, images have the channels of the first weight. What an operator or a name tells
is taken as it is; beyond that, sums of two dimensions are tried where the plain settings contradict the graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxprune.graph.asked import Asked
from onnxprune.graph.caches import behind_link, cache_lengths, cache_sums
from onnxprune.graph.dims import (
    Sizes,
    candidate_settings,
    dim_name,
    dynamic_dims,
    given_settings,
    graph_inputs,
    is_expression,
    rare_settings,
    sample_axes,
)
from onnxprune.graph.layers import data_width
from onnxprune.graph.product_widths import settled_by_products
from onnxprune.graph.shapes import Facts, Probe, infer_at, probe_at

_STATES: Mapping[tuple[str, str], tuple[tuple[int, int, tuple[int, ...]], ...]] = {
    ("com.microsoft", "GroupQueryAttention"): ((3, 1, (1, 3)), (4, 2, (1, 3))),
    ("com.microsoft", "MultiHeadAttention"): ((6, 1, (1, 3)), (7, 2, (1, 3))),
    ("com.microsoft", "Attention"): ((4, 1, (2, 4)),),
    ("com.microsoft", "LinearAttention"): ((3, 1, (1, 2, 3)),),
    ("com.microsoft", "CausalConvWithState"): ((3, 1, (1, 2)),),
    ("", "Attention"): ((4, 1, (1, 3)), (5, 2, (1, 3))),
    ("", "LSTM"): ((5, 1, (0, 2)), (6, 2, (0, 2))),
    ("", "GRU"): ((5, 1, (0, 2)),),
    ("", "RNN"): ((5, 1, (0, 2)),),
}
"""Inputs that hold a state: (input, output with the next state, axes that have the same extent in both)."""

_MOST_WALKS = 48  # inferences that are spent on finding sums


@dataclass(frozen=True)
class Extents:
    """What is known of free dimensions beside their names.

    Attributes:
        settled: The one extent that fits, by name.
        sums: Dimensions that are the sum of others (or equal to one), by name.
        least: The smallest extent that tells something, by name.
    """

    settled: Sizes = field(default_factory=dict)
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    least: Sizes = field(default_factory=dict)

    def applied(self, sizes: Sizes) -> dict[str, int]:
        """The sizes with what is known put in."""
        sizes = {name: max(n, self.least.get(name, n)) for name, n in sizes.items()}
        known = {**sizes, **{name: n for name, n in self.settled.items() if name in sizes}}
        return {name: sum(known[part] for part in self.sums[name]) if name in self.sums else n
                for name, n in known.items()}  # fmt: skip

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return not self.settled and not self.sums


def infer(model: ir.Model) -> Facts:
    """Infer all shapes of a model at two settings, the first of a few that raise the fewest contradictions."""
    return _inferred(model)[0]


def known_extents(model: ir.Model) -> Extents:
    """What weights and names tell: channels of a Conv, width of a product, a total length, the width of a cache."""
    settled = {**_widths(model), **_windows(model)}
    known = Extents(settled, {**cache_sums(model), **_named_sums(model)}, _full_windows(model))
    if not any(True for _ in _free_states(model)):
        return known
    probe = probe_at(model, known.applied(next(candidate_settings(model))[0]))
    return replace(known, settled={**known.settled, **_states(model, probe)})


def find_extents(model: ir.Model) -> Extents:
    """What weights, names, operators with a state and contradictions tell of the free dimensions."""
    return _inferred(model)[1]


def _inferred(model: ir.Model) -> tuple[Facts, Extents]:
    known = known_extents(model)
    # No contradiction shows that a mask is too short for its cache: it may be read only while the model runs.
    caches = Extents(sums=cache_sums(model))
    facts = _first_consistent(model, caches, candidate_settings(model))
    if not caches.empty and facts.failures:
        facts = _first_consistent(model, Extents(), candidate_settings(model), facts)
    if not known.empty and facts.failures:
        facts = _first_consistent(model, known, candidate_settings(model), facts)
    demanded = _states(model, facts.first)
    known = replace(known, settled={**known.settled, **demanded})
    sizes = facts.first.sizes
    if any(sizes.get(name, n) != n for name, n in demanded.items()):
        facts = _first_consistent(model, known, candidate_settings(model))
    if facts.failures:
        facts = _first_consistent(model, known, given_settings(model), facts)
    if facts.failures:
        known = _with_products(model, known, facts)
        facts = _first_consistent(model, known, candidate_settings(model), facts)
    if facts.failures:
        facts = _first_consistent(model, known, rare_settings(model), facts)
    if facts.failures:
        known = _with_sums(model, known, facts)
        facts = _first_consistent(model, known, candidate_settings(model), facts)
    return facts, known


def _first_consistent(
    model: ir.Model, known: Extents, pairs: Iterable[tuple[Sizes, Sizes]], best: Facts | None = None
) -> Facts:
    """Return the facts of the first setting with the fewest contradictions, `best` where none has fewer."""
    tried: list[tuple[Sizes, Sizes]] = []
    asked = Asked(model)
    for pair in pairs:
        setting = known.applied(pair[0]), known.applied(pair[1])
        if setting in tried:
            continue
        tried.append(setting)
        facts = infer_at(model, *setting, asked)
        if best is None or facts.failures < best.failures:
            best = facts
        if not facts.failures:
            break
    assert best is not None
    return best


def _with_sums(model: ir.Model, known: Extents, facts: Facts) -> Extents:
    """Add the sums of two dimensions, and the equal ones, that take contradictions away, one after the other."""
    dims = dynamic_dims(model)
    names = [n for n in dims if n not in known.settled and not is_expression(n, dims)]
    least, walks = facts.first.failures, 0
    improved = True
    while improved and least:
        improved = False
        for name, parts in _options([n for n in names if n not in known.sums]):
            if walks == _MOST_WALKS:
                return known
            walks += 1
            more = replace(known, sums={**known.sums, name: parts})
            failures = probe_at(model, more.applied(facts.first.sizes)).failures
            if failures < least:
                known, least, improved = more, failures, True
                break
    return known


def _with_products(model: ir.Model, known: Extents, facts: Facts) -> Extents:
    """Add the extents at which the widths of products fit."""
    dims, axes = dynamic_dims(model), sample_axes(model)
    free = [n for n in dims if n not in known.settled and n not in known.sums and not is_expression(n, dims)]
    batches = frozenset(n for n in free if dims[n][1] == axes[str(dims[n][0].name)])
    contradicted = facts.first if facts.first.failures else facts.second
    settled = settled_by_products(model, contradicted.sizes, free, batches, known.applied)
    return replace(known, settled={**known.settled, **settled})


def _options(names: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each dimension as the sum of two others, then as equal to another."""
    for name in names:
        others = [other for other in names if other != name]
        yield from ((name, pair) for pair in itertools.combinations(others, 2))
    for name, other in itertools.permutations(names, 2):
        yield name, (other,)


def _widths(model: ir.Model) -> dict[str, int]:
    """Extents that a weight right behind the input settles."""
    widths: dict[str, int] = {}
    for value in graph_inputs(model):
        for node, index in value.uses():
            axis_and_width = data_width(node, index, len(value.shape)) if value.shape is not None else None
            if (
                axis_and_width is not None
                and value.shape is not None
                and not isinstance(value.shape[axis_and_width[0]], int)
            ):
                widths[dim_name(value, axis_and_width[0])] = axis_and_width[1]
    return widths


def _named_sums(model: ir.Model) -> dict[str, tuple[str, ...]]:
    """A total length is past and sequence together, where each of the three has a dimension of its name."""
    dims = dynamic_dims(model)
    total = [name for name in dims if "total" in name.lower()]
    past = [name for name in dims if "past" in name.lower() and name not in total and not is_expression(name, dims)]
    past = [name for name in past if "seq" in name.lower()] if len(past) > 1 else past
    new = [name for name in dims if "seq" in name.lower() and name not in (*total, *past)]
    return dict.fromkeys(total, (past[0], new[0])) if len(past) == len(new) == 1 else {}


def _states(model: ir.Model, probe: Probe) -> dict[str, int]:
    """Extents of states among the inputs: heads and widths are those of the next state."""
    widths: dict[str, int] = {}
    for state, next_state, axes, _ in _free_states(model):
        shape = probe.shapes.get(next_state)
        if shape is None or state.shape is None or len(shape) != len(state.shape):
            continue
        for axis, (dim, extent) in enumerate(zip(state.shape, shape, strict=True)):
            if axis in axes and not isinstance(dim, int) and extent is not None and extent > 0:
                widths.setdefault(dim_name(state, axis), extent)
    return widths


def _window(node: ir.Node) -> int:
    """The length of a cache that holds a window instead of the whole past, 0 for others."""
    slides = node.attributes.get_int("sliding_window_cache", 0) and node.op_type == "GroupQueryAttention"
    return node.attributes.get_int("local_window_size", 0) if slides else 0


def _windows(model: ir.Model) -> dict[str, int]:
    """The lengths of caches that hold a window, by the names of their dimensions."""
    lengths = [(state, _window(node)) for state, _, _, node in states(model) if _window(node)]
    return {dim_name(state, 2): window for state, window in lengths
            if state.shape is not None and not isinstance(state.shape[2], int)}  # fmt: skip


def _full_windows(model: ir.Model) -> dict[str, int]:
    """How long the past must be to fill windows beside it: what lies in the rest of a window is not defined."""
    window = max(map(_window, model.graph), default=0)
    pasts = [state for state, _, _, node in states(model) if node.op_type == "GroupQueryAttention"
             and not _window(node) and len(state.shape or ()) == 4]  # fmt: skip
    free = [state for state in pasts if state.shape is not None and not isinstance(state.shape[2], int)]
    return {dim_name(state, 2): window for state in free if window}


def _free_states(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value, tuple[int, ...], ir.Node]]:
    """Yield what `states` does, where one of the axes that past and next state share has no fixed extent.

    A cache that Concat extends is such a state: what is put behind it has its heads, of the same size.
    """
    for past, next_state, axes, node in (*states(model), *_extended(model)):
        if past.shape is not None and any(not isinstance(d, int) for i, d in enumerate(past.shape) if i in axes):
            yield past, next_state, axes, node


def _extended(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value, tuple[int, ...], ir.Node]]:
    """Yield caches that a Concat extends, and what it puts behind them."""
    for past, axis in cache_lengths(model).items():
        node = next(node for node, index in behind_link(past).uses() if node.op_type == "Concat" and index == 0)
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            yield past, node.inputs[1], tuple({1, 2, 3} - {axis}), node


def states(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value, tuple[int, ...], ir.Node]]:
    """Yield states among the inputs, their next state, the axes that have the same extent in both, and the node."""
    for value in graph_inputs(model):
        past = behind_link(value)
        for node, index in past.uses() if value.shape is not None else ():
            for place, output, axes in _STATES.get((node.domain, node.op_type), ()):
                if place == index and node.graph is model.graph and output < len(node.outputs):
                    yield value, node.outputs[output], axes, node
