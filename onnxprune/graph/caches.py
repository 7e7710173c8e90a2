"""Caches among the inputs of a decoder, and what they say of free dimensions that belong together.

A cache is an input of four axes that is extended along one of them by Concat and handed out again. Exporters may give
every cache a length of its own name, and the mask another: PyTorch writes ``s62``, ``s17``, ``s53``. All caches hold
the same past, and the mask covers past and new tokens together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from onnxprune.graph.dims import dim_name, dynamic_dims, graph_inputs, is_expression

LINK = "onnxprune.cache"
"""Marks what stands between a cache and the graph while a run cuts; see `narrowing`."""


_NUMBERS = re.compile(r"\d+")

PAST = "onnxprune.cache.past"
"""Names the input whose cache a way out hands on."""

GONE = "onnxprune.cache.gone"
"""Marks the output of a cache whose layer went: another stands in for it until the interface is narrowed."""


def is_way_out(node: ir.Node) -> bool:
    """Say whether a node is the product between a layer and the output that hands its cache on."""
    return is_link(node) and node.outputs[0].is_graph_output()


def is_link(node: ir.Node) -> bool:
    """Say whether a node is one of the products that stand between a cache and the graph while a run cuts."""
    return LINK in node.metadata_props


def are_alike(one: ir.Value, other: ir.Value) -> bool:
    """Say whether two caches are of a kind and so equally long, as those of an encoder and of tokens are not.

    Their names are the same but for numbers, as ``present.0.key`` and ``present.1.key``, or their extents are.
    """
    if _NUMBERS.sub("", str(one.name)) == _NUMBERS.sub("", str(other.name)):
        return True
    return one.shape is not None and one.shape == other.shape and one.shape.has_unknown_dim() is False


def is_link_matrix(value: ir.Value) -> bool:
    """Say whether a constant is the matrix of such products."""
    return LINK in value.metadata_props


def cache_lengths(model: ir.Model) -> dict[ir.Value, int]:
    """Return the axis along which each cache among the inputs grows, where its length is free."""
    axes: dict[ir.Value, int] = {}
    for value in graph_inputs(model):
        rank = len(value.shape or ())
        for node, index in behind_link(value).uses():
            if node.op_type != "Concat" or index != 0 or rank != 4 or not is_handed_on(node.outputs[0]):
                continue
            axis = node.attributes.get_int("axis", 0) % rank
            if value.shape is not None and not isinstance(value.shape[axis], int):
                axes[value] = axis
    return axes


def behind_link(value: ir.Value) -> ir.Value:
    """Return what the graph reads of a cache: the product behind the input where there is one."""
    return next((node.outputs[0] for node, _ in value.uses() if is_link(node)), value)


def is_handed_on(value: ir.Value) -> bool:
    """Say whether a value is an output of the graph, as it is or through a link."""
    return value.is_graph_output() or any(is_link(node) for node, _ in value.uses())


def cache_sums(model: ir.Model) -> Mapping[str, tuple[str, ...]]:
    """Return dimensions that are others, or sums of others, by name; empty where the inputs hold no cache.

    The new tokens are counted by the last axis of the first input of integers with two axes that is no mask.
    """
    lengths, dims = cache_lengths(model), dynamic_dims(model)
    rows = [v for v in graph_inputs(model) if len(v.shape or ()) == 2 and v.dtype is not None
            and (v.dtype.is_integer() or v.dtype == ir.DataType.BOOL)]  # fmt: skip
    masks = [v for v in rows if "mask" in str(v.name).lower()]
    tokens = next((v for v in rows if v not in masks and v.shape is not None), None)
    if not lengths or tokens is None:
        return {}
    pasts = list(dict.fromkeys(dim_name(value, axis) for value, axis in lengths.items()))
    new = _free(tokens, 1)
    sums: dict[str, tuple[str, ...]] = dict.fromkeys(pasts[1:], (pasts[0],))
    for mask in masks:
        total, batch = _free(mask, 1), _free(mask, 0)
        if total is not None and new is not None and total not in (new, *pasts):
            sums[total] = (pasts[0], new)
        first = _free(tokens, 0)
        if batch is not None and first is not None and batch != first:
            sums[batch] = (first,)
    return {name: parts for name, parts in sums.items() if not any(is_expression(n, dims) for n in (name, *parts))}


def _free(value: ir.Value, axis: int) -> str | None:
    """Return the name of a dimension, None where it is fixed."""
    return None if value.shape is None or isinstance(value.shape[axis], int) else dim_name(value, axis)
