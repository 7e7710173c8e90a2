"""How far a proof reaches: which removed units moved an output when they were zeroed, which branches ran.

Units whose zeroing moves nothing could have been cut wrongly without any output telling. The constants of all removed
units become inputs of one session, so that zeroing other units is another run and no other session.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import OnnxPruneError
from onnxprune.runtime import Feeds
from onnxprune.structure.masking import masked_values, zeroed_units
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.verification.comparable import seeded

_MOST_RUNS, _MOST_SECONDS = 256, 3.0
_LARGE = 256 << 20  # bytes of constants that are not handed over at every run
INEXACT = (
    "the result equals the original with the removed units zeroed and its normalisations (and other operators that mix "
    "these units) running over what is left; it does not equal the original with these units zeroed alone"
)


@dataclass(frozen=True)
class Reach:
    """What the removed units of one cut did to the outputs when they were zeroed.

    Attributes:
        units: How many units were removed.
        tested: How many of them were zeroed, alone or with others of their group that moved nothing together.
        moved: How many of these moved an output.
        outputs: For each output, whether it reacted when all removed units were zeroed.
        inexact: Whether some lie on an axis that a normalisation or another mixing operator runs over.
        branches: For each If of the main graph, the branches that ran: "then", "else" or both.
    """

    units: int
    tested: int = 0
    moved: int = 0
    outputs: Mapping[str, bool] = field(default_factory=dict)
    inexact: bool = False
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """One short line for a person."""
        if not self.tested:
            return f"reach of the proof: none of the {self.units:,} removed units was zeroed by itself"
        of = "" if self.tested == self.units else f" tested, of {self.units:,}"
        text = f"reach of the proof: {self.moved:,} of {self.tested:,} removed units{of} moved an output when zeroed"
        silent = [name for name, reacted in self.outputs.items() if not reacted]
        if silent:
            text += f"; {len(silent)} of {len(self.outputs)} outputs did not react, such as '{silent[0]}'"
        half = [name for name, ran in self.branches.items() if len(ran) == 1]
        if half:
            text += (
                f"; of {len(half)} If nodes one branch ran alone, such as {self.branches[half[0]][0]} of '{half[0]}'"
            )
        return text


def reach_of(structure: Structure, model: ir.Model, removed: Bools, batches: Sequence[Feeds]) -> Reach:
    """Zero the removed units, group by group and then one by one, as far as time allows.

    Args:
        structure: The analysis of the model before the cut.
        model: That model; it stays as it is.
        removed: Flags by atom id, shape (number of ids,).
        batches: Inputs, those of the proof.
    """
    groups = [group.atoms[removed[group.atoms]] for group in structure.groups]
    groups = [atoms for atoms in groups if len(atoms)]
    inexact = any(bool(group.inexact) and bool(removed[group.atoms].any()) for group in structure.groups)
    none = Reach(sum(map(len, groups)), inexact=inexact)
    try:
        probe = _Probe.of(structure, model, removed, batches)
        if probe is None:
            return none
        moved_by_all = probe.moved(removed)
        outputs = {str(v.name): str(v.name) in moved_by_all for v in model.graph.outputs}
        tested, moved = _count(probe, groups, len(removed))
    except OnnxPruneError:
        return none
    return Reach(none.units, tested, moved, outputs, inexact, probe.branches)


def _count(probe: _Probe, groups: Sequence[Any], size: int) -> tuple[int, int]:
    """How many units were tested, and how many of them moved an output."""
    tested = moved = 0
    waiting = []
    stop, runs = time.monotonic() + _MOST_SECONDS, 0
    for atoms in groups:
        if runs < _MOST_RUNS and time.monotonic() < stop:
            runs += 1
            if probe.moved(_flags(atoms, size)):
                waiting.append(np.random.default_rng(0).permutation(atoms))
            else:
                tested += len(atoms)
    for place in range(max(map(len, waiting), default=0)):
        for atoms in waiting:
            if place < len(atoms) and runs < _MOST_RUNS and time.monotonic() < stop:
                runs, tested = runs + 1, tested + 1
                moved += bool(probe.moved(_flags(atoms[place : place + 1], size)))
    return tested, moved


def _flags(atoms: Any, size: int) -> Bools:
    flags = np.zeros(size, bool)
    flags[atoms] = True
    return flags


@dataclass(frozen=True)
class _Probe:
    """A session that takes the constants of the removed units as inputs."""

    structure: Structure
    session: Any
    constants: Mapping[str, Any]
    batches: Sequence[Feeds]
    expected: Sequence[Mapping[str, Any]]
    branches: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(structure: Structure, model: ir.Model, removed: Bools, batches: Sequence[Feeds]) -> _Probe | None:
        """Make the session; None where constants of the units cannot be handed over."""
        main = model.graph.initializers
        tensors = {str(v.name): main[str(v.name)].const_value for v in masked_values(structure, removed)
                   if v.is_initializer() and str(v.name) in main}  # fmt: skip
        usable = {n: t for n, t in tensors.items() if t is not None and t.dtype.numpy().kind in "fiu"}
        if not usable or sum(tensor.nbytes for tensor in usable.values()) > _LARGE:
            return None
        constants = {name: tensor.numpy() for name, tensor in usable.items()}
        copy = seeded(model).clone()
        for name in constants:
            value = copy.graph.initializers.pop(name)
            tensor = value.const_value
            assert tensor is not None
            value.dtype, value.shape, value.const_value = tensor.dtype, ir.Shape(tensor.shape.numpy()), None
            if value not in copy.graph.inputs:
                copy.graph.inputs.append(value)
        conditions = _show_conditions(copy)
        session = runtime.make_session(copy)
        expected = [runtime.run(session, {**feeds, **constants}) for feeds in batches]
        known = [{**feeds, **outputs} for feeds, outputs in zip(batches, expected, strict=True)]
        ran = {name: tuple(dict.fromkeys("then" if bool(np.all(values[of])) else "else" for values in known))
               for name, of in conditions.items()}  # fmt: skip
        return _Probe(structure, session, constants, batches, expected, ran)

    def moved(self, flags: Bools) -> set[str]:
        """The names of the outputs that differ when these units are zeroed."""
        zeroed = {str(value.name): array for value, array in zeroed_units(self.structure, flags)}
        arrays = {name: zeroed[name].astype(array.dtype) if name in zeroed else array
                  for name, array in self.constants.items()}  # fmt: skip
        moved: set[str] = set()
        for feeds, expected in zip(self.batches, self.expected, strict=True):
            outputs = runtime.run(self.session, {**feeds, **arrays})
            moved |= {n for n in expected if runtime.relative_difference(expected[n], outputs[n]) > 0}
        return moved


def _show_conditions(model: ir.Model) -> dict[str, str]:
    """Make the condition of each If an output, if it is no input; return its name by the name of the If."""
    inputs = {value for value in model.graph.inputs if not value.is_initializer()}
    shown = {str(value.name) for value in (*model.graph.outputs, *inputs)}
    conditions: dict[str, str] = {}
    for node in list(model.graph):
        condition = node.inputs[0] if node.op_type == "If" and node.inputs else None
        if condition is None or (condition.producer() is None and condition not in inputs):
            continue
        name = str(condition.name)
        if name not in shown:
            condition.dtype = condition.dtype or ir.DataType.BOOL
            model.graph.outputs.append(condition)
            shown.add(name)
        conditions[node.name or str(node.outputs[0].name)] = name
    return conditions
