"""What every rule leaves free, as text: one line for each form of each operator, and for random graphs.

    PYTHONPATH=.:tests python -m structure.freedom > tests/structure/freedom.txt      writes the table anew

The oracle (test_backend_cases.py) finds a rule that frees too much; one that frees too little is sound, and only this
table shows it. A line says for each operand and output which axes can lose indices::

    Conv/2 groups: x:.,6,.,. w:12z,3z,.,. b:12z -> y:.,12z,.,. | 9 atoms | channels 9

``12`` is the number of indices that can go, ``.`` none; ``z`` says that removed indices are zero, ``~`` that the axis
is mixed. Then how many atoms there are in all: fewer means that more units are tied together; and what they are called.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grown
import numpy as np
import onnx_ir as ir

from onnxprune.structure import registry
from onnxprune.structure.analysis import analyse
from onnxprune.structure.structure import Structure

from .form_cases import all_cases
from .node_cases import Case
from .twins import analyse_open, normalised

KINDS = ("IMAGE", "SEQUENCE")
GRAPHS = 40  # random graphs of each kind
_LINES = Path(__file__).with_name("freedom.txt").read_text(encoding="utf-8").splitlines()
EXPECTED = dict(line.split(": ", 1) for line in _LINES)
"""The table as it was written."""


def table() -> dict[str, str]:
    """Return every line by its name; a form that reads like an earlier one of its operator is left out."""
    lines: dict[str, str] = {}
    for operator in registry.registered():
        seen = set()
        for case in all_cases(operator):
            line = of_case(case)
            if line not in seen:
                seen.add(line)
                lines[f"{operator}/{case.name}"] = line
    lines.update({f"{kind}/{seed}": of_graph(kind, seed) for kind in KINDS for seed in range(GRAPHS)})
    return lines


def of_case(case: Case) -> str:
    """Describe one case of one operator."""
    model = normalised(case.model)
    node, bystander = next(iter(model.graph)), _bystander(model)
    structure = analyse_open(model)
    assert structure.removable(bystander, 0).all(), "a rule pins what its node does not touch"
    ins = " ".join(f"{v.name}:{_axes(structure, v)}" for v in node.inputs if v is not None)
    outs = " ".join(f"{v.name}:{_axes(structure, v)}" for v in node.outputs if v.name)
    return f"{ins} -> {outs} | {_summary(structure)}"


def _bystander(model: ir.Model) -> ir.Value:
    """Put a node that has nothing to do with the others in front of them, and return the constant it reads."""
    value = ir.Value(name="bystander", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.Tensor(np.ones(3, np.float32), name="bystander")
    model.graph.register_initializer(value)
    node = ir.node("Relu", [value])
    node.outputs[0].name = "bystander_relu"
    model.graph.insert_before(next(iter(model.graph)), node)
    return value


def of_graph(kind: str, seed: int) -> str:
    """Describe one random graph."""
    rng = np.random.default_rng(seed)
    steps = [(int(a), int(b), int(c)) for a, b, c in rng.integers(0, 24, (6, 3))]
    structure = analyse(normalised(grown.grow(getattr(grown, kind), steps, seed)))
    sites = sum(len(group.sites) for group in structure.groups)
    free = structure.prunable_share()[0], structure.prunable_share(exact=False)[0]
    return f"{sites} sites, {free[0]} or {free[1]} weights free | {_summary(structure)}"


def _axes(structure: Structure, value: ir.Value) -> str:
    zero = structure.zero.get(value, [])
    out = []
    for i, flag in enumerate(zero):
        exact, free = (int(structure.removable(value, i, exact=exact).sum()) for exact in (True, False))
        out.append((f"{free}{'~' if exact < free else ''}{'z' if flag else ''}") if free else ".")
    return ",".join(out)


def _summary(structure: Structure) -> str:
    atoms = {
        int(a)
        for value in structure.axes
        if not str(value.name).startswith("bystander")
        for i in range(len(structure.axes[value]))
        if (ids := structure.ids(value, i)) is not None
        for a in structure.terms.members(ids)[1]
    }
    kinds: Counter[str] = Counter()
    for group in structure.groups:
        kinds[group.kind + ("~" if group.inexact else "")] += len(group)
    return f"{len(atoms)} atoms | {', '.join(f'{k} {n}' for k, n in sorted(kinds.items()))}"


if __name__ == "__main__":
    for name, line in table().items():
        print(f"{name}: {line}")
