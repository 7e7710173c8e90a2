"""One walk over a model that gives every axis its terms: ``analyse(model) -> Structure``.

Every node's rule ties the axes of its operands together (see `rules`). Unification is global and order-free, so one
walk is enough, subgraphs included: their values live in the same store as the outer graph's.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from onnxprune.graph.inference import infer
from onnxprune.graph.layers import weight_operands
from onnxprune.graph.operators import key, operator_of
from onnxprune.graph.shapes import Facts
from onnxprune.model_io.bodies import nodes_of
from onnxprune.structure import registry
from onnxprune.structure.axes import parts
from onnxprune.structure.structure import Structure
from onnxprune.structure.view import Findings, RuleMismatch, View


def analyse(model: ir.Model, facts: Facts | None = None) -> Structure:
    """Find which units of a model live and die together.

    Args:
        model: A normalised model (constants lifted to initializers, functions inlined). It is not changed.
        facts: Shapes of its values, inferred when left out.

    Returns:
        The axes of every value, with all that `Structure` derives from them.
    """
    return complete(Findings(model, facts or infer(model), walk, never_zeroed(model)))


def complete(findings: Findings) -> Structure:
    """Walk the model of empty findings, and return the structure that they make."""
    model = findings.model
    for value in model.graph.inputs:
        if not value.is_initializer():
            findings.still(value, f"graph input {value.name}")
    for value in model.graph.outputs:
        findings.still(value, f"graph output {value.name}")
    findings.walk(findings, model.graph)
    for value, ids in findings.picks.items():
        if value.is_graph_output():
            findings.terms.pin(ids, f"graph output {value.name}")
    _no_axis_empties(findings)
    return Structure(
        model=model,
        facts=findings.facts,
        terms=findings.terms,
        axes=findings.axes,
        zero=findings.zero,
        fills=findings.fills,
        weights=findings.weights,
        mixed=findings.mixed,
        unmasked=findings.unmasked,
        unruled=dict(Counter(findings.unruled.values())),
        picks=findings.picks,
        least=findings.least,
    )


def never_zeroed(model: ir.Model) -> set[ir.Value]:
    """Constants that an operator divides by, takes the logarithm of, ...: masking leaves them."""
    values: set[ir.Value] = set()
    for node in nodes_of(model.graph):
        operator = operator_of(node)
        places = {*operator.never_zeroed, *operator.scales}
        values.update(value for i, value in enumerate(node.inputs) if i in places and value is not None)
    return values


def walk(findings: Findings, graph: ir.Graph) -> None:
    """Apply the rule of every node of a graph, in order."""
    for node in graph:
        _apply(View(findings, node), key(node.domain, node.op_type))


def _apply(view: View, name: str) -> None:
    """Run a node's rule; what it cannot describe is pinned, with the reason."""
    rule = registry.find_rule(name)
    if rule is None:
        reason = registry.REASONS.get(name)
        if reason is None:
            view.findings.unruled[view.node] = name
            reason = "there is no rule for this operator"
        _follow_picks(view)
        view.opaque(reason)
        return
    try:
        rule(view)
        _follow_picks(view)
        _require_all_outputs(view)
    except RuleMismatch as error:
        _follow_picks(view)
        view.opaque(str(error))
        for value in weight_operands(view.node):  # its weights count, though nothing of them can go
            if len(view.facts.shape(value) or ()) > 1:
                view.weight(value)
    except Exception as error:  # a form of the operator that its rule does not foresee: pinning is always sound
        view.findings.unruled[view.node] = f"{name} (its rule failed)"
        _follow_picks(view)
        view.opaque(f"its rule failed on it ({type(error).__name__}: {error})")


def _follow_picks(view: View) -> None:
    """Follow integers that are indices of an axis: views pass them on, a pick by them is tied to that axis.

    Whatever else reads them keeps the axis as it is, for they would be other numbers.
    """
    state, node = view.findings, view.node
    for i, value in enumerate(node.inputs):
        if value is None or value not in state.picks:
            continue
        if operator_of(node).view and i == 0:
            state.picks[node.outputs[0]] = state.picks[value]
        elif not (operator_of(node).movement == "pick" and i == 1 and view.picked_by_rule):
            view.pin(state.picks[value], "it reads the positions of indices along this axis")


def _require_all_outputs(view: View) -> None:
    """Refuse a node with an output that somebody reads and that got no axes: nothing would tie what it holds."""
    for out in view.node.outputs:
        if out.name and out not in view.findings.axes and (out.uses() or out.is_graph_output()):
            raise RuleMismatch(f"the shape of its output {out.name} is not known")


def _no_axis_empties(findings: Findings) -> None:
    """Pin atoms that are present at every index of an axis."""
    seen, terms = set[int](), findings.terms
    for value, axes in findings.axes.items():
        for ids in (i for axis in axes for i in parts(axis)):
            if id(ids) in seen or not len(ids):
                continue
            seen.add(id(ids))
            first, last = terms.root(int(ids[0])), terms.root(int(ids[-1]))
            if first != last and not terms.bound[first] and not terms.bound[last]:
                continue  # of most axes, the ends tell already
            roots = terms.find(ids)
            if len(ids) > 1 and not np.count_nonzero(terms.bound[roots]):
                everywhere = roots[:1] if first == last and (roots == first).all() else roots[:0]
            else:
                _, atoms = terms.members(ids)
                if len(atoms) < len(ids):
                    continue
                used_atoms, counts = np.unique(atoms, return_counts=True)
                everywhere = used_atoms[counts == len(ids)]
            if len(everywhere):
                terms.pin(everywhere, f"it is all of an axis of {value.name}")
