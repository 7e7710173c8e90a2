"""What a model offers to pruning: its groups of units, the prunable share, and what is pinned by which operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.data.fit import input_specs
from onnxprune.data.readers import AnyData
from onnxprune.data.working import give_inputs
from onnxprune.errors import DataError, ModelError
from onnxprune.graph import size
from onnxprune.graph.caches import LINK, is_link_matrix
from onnxprune.graph.dims import graph_inputs
from onnxprune.graph.hints import hints_of
from onnxprune.graph.narrowing import free_caches, has_caches
from onnxprune.graph.size import Shapes, graph_macs, macs_of, nodes_with_times
from onnxprune.pipeline.prepare import prepare
from onnxprune.recipe.granularity import IN_WORDS
from onnxprune.recipe.training import DataSettings
from onnxprune.runtime.heap import few_collections
from onnxprune.runtime.libraries import custom_operators
from onnxprune.structure.architecture import Architecture, attentions, called, describe
from onnxprune.structure.blocks import layers_of, residual_blocks
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import prunable_weights, total_size
from onnxprune.verification.notebook import in_notebook

_OF_LINKS = {"heads": "number of heads", "sizes": "head size"}  # by what a cache's matrix is for


@dataclass(frozen=True)
class GroupInfo:
    """A family of units that live and die alone, with all that one of them takes along.

    Attributes:
        name: Named after its first site.
        kind: What ``--kinds`` calls it.
        units: How many there are.
        sites: The axes of constants that lose indices with a unit.
        inexact: Why removal changes what is left; empty where it is exact.
        called: What users call the units, where that says more: KV groups, query heads per group.
    """

    name: str
    kind: str
    units: int
    sites: tuple[str, ...]
    inexact: str
    called: str = ""


@dataclass(frozen=True)
class WeightInfo:
    """One weight: what of it can be removed with its units, and why an axis cannot be cut."""

    name: str
    operator: str
    node: str
    shape: tuple[int, ...]
    prunable: int
    pinned: tuple[str, ...]


@dataclass(frozen=True)
class Caches:
    """What `--resize-io` frees.

    Attributes:
        count: How many caches there are among the inputs.
        units: Units that go with the flag alone, the same in every layer, by what they are called.
        unit_parameters: Parameters that go with some unit, exactly, with the flag.
        layers: How many whole layers could go.
        stays: Why units stay even with the flag, by what they are called: those that an operator normalises itself.
    """

    count: int
    units: dict[str, int]
    unit_parameters: int
    layers: int
    stays: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """What could be pruned.

    Attributes:
        groups: All groups, in the order of the model.
        weights: All weights, in the order of the model.
        weight_parameters: Parameters of all weights: what ``--structure weights`` can zero.
        unit_parameters: Those that go with some unit, exactly: what ``--structure channels`` can remove.
        inexact_parameters: The same with ``--allow-inexact``.
        macs: Multiply-adds of one run, at the input shapes given.
        unit_macs: Those of nodes whose weight can be cut.
        uncounted: Nodes whose multiply-adds are not known, each as "Operator name".
        input_shapes: The inputs that multiply-adds are of: one sample, where the model takes one; empty where the
            model leaves shapes open and no inputs are found that it runs with.
        unruled: Operators that have no rule and pin all that they touch, with how often they occur.
        caches: What `--resize-io` frees; None where the model has no caches.
        elsewhere: Learnt numbers that are no prunable weights, by the operator that holds them: trees, embeddings,
            biases, scales.
        inputs: What the model takes: each input with its dimensions, a text where one is not fixed.
        architecture: What the network is, number by number.
        line: The same in words.
    """

    groups: tuple[GroupInfo, ...]
    weights: tuple[WeightInfo, ...]
    weight_parameters: int
    unit_parameters: int
    inexact_parameters: int
    macs: int
    unit_macs: int
    uncounted: tuple[str, ...]
    unruled: dict[str, int]
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    caches: Caches | None = None
    elsewhere: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    architecture: Architecture | None = None
    line: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @property
    def headline(self) -> str:
        """How much there is, and how much of it can go, in a few words."""
        share = self.unit_parameters / max(self.weight_parameters, 1)
        return (
            f"{self.weight_parameters:,} weights in {len(self.weights)} layers, {share:.1%} go with whole units; "
            f"{len(self.groups)} groups of units; {self.macs:,} multiply-adds"
        )

    def __repr__(self) -> str:
        return f"<Inspection: {self.headline}>"

    def _repr_html_(self) -> str:
        rows = [(g.name, g.kind, g.units, len(g.sites), g.inexact or "exact") for g in self.groups]
        unruled = [f"{name} ({count})" for name, count in sorted(self.unruled.items())]
        notes = [f"Operators without a rule, all that they touch is pinned: {', '.join(unruled)}"] if unruled else []
        return in_notebook(self.headline, ("group", "kind", "units", "axes", "removal"), rows, notes)


def inspect(
    model: str | Path | onnx.ModelProto | ir.Model,
    *,
    inputs: AnyData | None = None,
    input_shape: Sequence[str] = (),
    custom_ops: Sequence[str | Path] = (),
) -> Inspection:
    """Find what could be pruned.

    Args:
        model: A path, an onnx.ModelProto or an onnx_ir.Model. It is never changed.
        inputs: Inputs that the model runs with, where none are found.
        input_shape: Shapes of inputs at which multiply-adds are counted: ``image:1x3x224x224``.
        custom_ops: Libraries of custom operators that the model needs.

    Raises:
        ModelError: The model cannot be read.

    >>> import onnxprune
    >>> inspection = onnxprune.inspect("models/digits_mlp.onnx")
    >>> [(group.kind, group.units) for group in inspection.groups]
    [('neurons', 300), ('neurons', 100)]
    """
    with custom_operators(custom_ops), few_collections():
        loaded = model_io.load_any(model)
        give_inputs(loaded, inputs, DataSettings(input_shape=tuple(input_shape)))
        return _inspected(loaded)


def _inspected(model: ir.Model) -> Inspection:
    """Inspect a model, which is normalised in place."""
    caches, inputs = _caches(model), {spec.name: spec.dims or () for spec in input_specs(model)}
    structure = prepare(model)
    weights = prunable_weights(structure)
    infos, cuttable_nodes = [], set()
    shapes, input_shapes = _shapes_of_one_sample(structure)
    for weight in weights:
        cuttable = [structure.removable(weight.value, axis) for axis in range(len(weight.shape))]
        stuck = int(
            np.prod([len(f) - int(f.sum()) if len(f) else n for f, n in zip(cuttable, weight.shape, strict=True)])
        )
        prunable = weight.size - stuck
        if prunable:
            cuttable_nodes.add(weight.node)
        infos.append(
            WeightInfo(
                weight.name, weight.node.op_type, weight.node.name or "", weight.shape, prunable,
                tuple(structure.why_pinned(weight.value)),
            )
        )  # fmt: skip
    macs, uncounted = graph_macs(structure.model, shapes)
    exact, _ = structure.prunable_share()
    inexact, _ = structure.prunable_share(exact=False)
    elsewhere = size.numbers_elsewhere(structure.model, {weight.value for weight in weights})
    attending = attentions(structure)
    architecture = describe(structure, total_size(weights) + sum(elsewhere.values()), attending)
    return Inspection(
        groups=tuple(_group(group, called(group, attending)) for group in structure.groups),
        weights=tuple(infos),
        weight_parameters=total_size(weights),
        unit_parameters=exact,
        inexact_parameters=inexact,
        macs=macs,
        unit_macs=sum(
            times * (macs_of(node, shapes) or 0)
            for node, times in nodes_with_times(structure.model.graph, shapes)
            if node in cuttable_nodes
        ),
        uncounted=uncounted,
        unruled=dict(structure.unruled),
        input_shapes=input_shapes,
        caches=caches,
        elsewhere=elsewhere,
        inputs=inputs,
        architecture=architecture,
        line=architecture.line,
    )


def _group(group: Group, kind: str) -> GroupInfo:
    sites = tuple(f"{site.value.name}[{site.axis}]" for site in group.sites)
    return GroupInfo(group.name, kind, len(group), sites, group.inexact, IN_WORDS.get(kind, kind))


def _caches(original: ir.Model) -> Caches | None:
    """What could go if caches among inputs and outputs were narrowed."""
    if not has_caches(original):
        return None
    model = original.clone()
    count = free_caches(model)
    if not count:
        return None
    structure = prepare(model)
    units: dict[str, int] = {}
    attending = attentions(structure)
    for group in structure.groups:
        if any(is_link_matrix(site.value) for site in group.sites):
            name = IN_WORDS.get(kind := called(group, attending), kind)
            units[name] = units.get(name, 0) + len(group)
    exact, _ = structure.prunable_share()
    stays = {_OF_LINKS[value.metadata_props[LINK]]: reason for value in model_io.all_initializers(structure.model)
             if is_link_matrix(value) and (reason := _reason_inside(structure, value))}  # fmt: skip
    return Caches(count, units, exact, len(layers_of(residual_blocks(structure))), stays)


def _reason_inside(structure: Structure, matrix: ir.Value) -> str:
    """Why the inner axis of a cache's matrix cannot be cut; empty where it can."""
    inside = next((reason for reason in structure.why_pinned(matrix) if reason.startswith("axis 1")), "")
    reason = inside.partition(": ")[2]
    return "all of it goes together" if str(matrix.name) in reason else reason


def _shapes_of_one_sample(structure: Structure) -> tuple[Shapes, dict[str, tuple[int, ...]]]:
    """The shapes of all values where the model runs one sample, and those of its inputs.

    Where the inputs have one shape only, the user told none, and inference left nothing open, the model is not run.
    """
    written = _written_shapes(structure)
    if written is not None:
        return structure.known_shapes, written
    try:
        sample = runtime.one_sample(structure.model)
        shapes = runtime.concrete_shapes(structure.model, sample, size.counted_values(structure.model))
    except (DataError, ModelError):
        if hints_of(structure.model).shapes:
            raise
        return structure.known_shapes, {}
    return shapes, {name: np.shape(array) for name, array in sample.items()}


def _written_shapes(structure: Structure) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the inputs as the model states them; None where they, or those of counted values, are open."""
    hints = hints_of(structure.model)
    if hints.shapes or hints.inputs or hints.samples:
        return None  # whether the model runs them shows when it does
    shapes = {str(value.name): value.shape for value in graph_inputs(structure.model)}
    if any(shape is None or not shape.is_static() for shape in shapes.values()):
        return None
    known = structure.known_shapes
    if any(value not in known for value in size.counted_values(structure.model)):
        return None
    return {name: tuple(shape.numpy()) for name, shape in shapes.items() if shape is not None}
