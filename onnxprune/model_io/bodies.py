"""The graphs that nodes hold, branches of If, bodies of Loop and Scan, and walks through all nodes and graphs.

onnx-ir's own walks ask each node for its attributes through three layers of iterators, which took a twelfth of the time
of a run; most nodes hold no graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

_ONE, _SEVERAL = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


def bodies(node: ir.Node) -> Sequence[ir.Graph]:
    """Return the graphs among the attributes of a node, in their order."""
    attributes = node.attributes.data
    if not attributes:
        return ()
    found: list[ir.Graph] = []
    for attribute in attributes.values():
        kind = attribute.type
        if (kind is _ONE or kind is _SEVERAL) and not attribute.is_ref():
            found += [attribute.as_graph()] if kind is _ONE else attribute.as_graphs()
    return found


def nodes_of(graph: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Yield the nodes of a graph, each before those of the graphs that it holds."""
    for node in graph:
        yield node
        for body in bodies(node):
            yield from nodes_of(body)


def subgraphs_of(graph: Iterable[ir.Node]) -> list[ir.Graph]:
    """Return the graphs that the nodes of a graph hold, in all depths, each before those in it."""
    found: dict[ir.Graph, None] = {}
    for node in graph:
        for body in bodies(node):
            found[body] = None
            found.update(dict.fromkeys(subgraphs_of(body)))
    return list(found)


def graphs_of(model: ir.Model) -> list[ir.Graph]:
    """Return all graphs of a model: the main one, then those in it."""
    return [model.graph, *subgraphs_of(model.graph)]
