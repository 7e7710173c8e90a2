"""Recovery without labels or training: layer by layer, towards what the dense network computes.

    recovered = recover(dense, pruned, kept, {"images": array})

In topological order, each contraction of the pruned network gets the activations that the network before it now gives,
and the dense network's outputs as targets. A *method* proposes new weights and biases from their moments; a proposal is
kept only where it lowers the error on inputs held back from it. Layers that lie side by side (query, key and value)
share one pass over the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import DataError, RecipeError
from onnxprune.recovery.methods import METHODS, Layer, Proposal
from onnxprune.recovery.solve import Affine
from onnxprune.runtime.inputs import Feeds
from onnxprune.runtime.linear import Linear, linear_layers, tensor_of
from onnxprune.runtime.statistics import Inputs, Moments, batches, layer_moments, output_error, shadow

Kept = Mapping[str, Mapping[int, npt.NDArray[np.int64]]]
FOLDS = 4


@dataclass(frozen=True)
class Step:
    """What was tried on one layer.

    Attributes:
        layer: Name of its weight.
        method: What was tried.
        before, after: Relative error on held-back inputs: of the layer's output for methods that are judged by it,
            of the model's outputs for the others.
        applied: Whether it was kept.
        detail: What else there is to know: the ridge that was chosen.
    """

    layer: str
    method: str
    before: float
    after: float
    applied: bool
    detail: str = ""


@dataclass(frozen=True)
class Recovery:
    """What was done to a model.

    Attributes:
        steps: In the order in which they were tried.
        skipped: Contractions that were left as they are, with the reason.
        before, after: Relative squared error of the model's outputs on the calibration inputs.
        samples: How many inputs were used.
    """

    steps: tuple[Step, ...]
    skipped: Mapping[str, str]
    before: float
    after: float
    samples: int


@dataclass
class _Run:
    """The state of one recovery."""

    dense: ir.Model
    pruned: ir.Model
    feeds: Sequence[Feeds]
    outputs: Sequence[str]
    windows: int
    steps: list[Step] = field(default_factory=list)

    def error(self) -> float:
        """The model's error on the last fold, which no proposal of a globally judged method is made from."""
        return output_error(shadow(self.dense, self.pruned), self.feeds[FOLDS - 1 :: FOLDS], self.outputs)


def recover(
    dense: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    inputs: Inputs,
    *,
    methods: Sequence[str] = ("least-squares",),
    batch: int = 64,
    windows: int = 256,
    progress: Callable[[str], None] | None = None,
) -> Recovery:
    """Bring a pruned model's outputs back towards the dense model's, in place.

    Args:
        dense: The model before pruning, normalised. It stays as it is.
        pruned: The model after; removed units are gone, zeroed weights are zero and stay zero.
        kept: The kept indices of cut constants, by name and axis, as `RemoveUnits` tells them.
        inputs: Unlabelled samples by input name.
        methods: Names of `METHODS`, each run over the whole network in this order.
        batch: Samples run at once.
        windows: Largest number of places of one feature map that statistics are taken from.
        progress: Called with the name of each layer.

    Raises:
        RecipeError: There is no such method.
        DataError: The inputs do not fit, or are fewer than two batches: none could be held back.
    """
    for name in methods:
        if name not in METHODS:
            raise RecipeError(f"unknown recovery {name!r}; choose of {', '.join(METHODS)}")
    feeds = batches(pruned, inputs, batch, least=2 * FOLDS)
    if len(feeds) < 2:
        raise DataError("recovery needs at least two batches of calibration inputs, one of them to hold back.")
    outputs = [str(v.name) for v in pruned.graph.outputs]
    run = _Run(dense, pruned, feeds, outputs, windows)
    layers, skipped = linear_layers(pruned)
    affected, missing = _affected(dense, layers, kept)
    before = output_error(shadow(dense, pruned), feeds, outputs)
    for method in methods:
        for stage in stages(pruned, affected):
            if progress is not None:
                progress(stage[0].name)
            _recover_stage(run, stage, kept, method)
    after = output_error(shadow(dense, pruned), feeds, outputs) if run.steps else before
    samples = sum(len(next(iter(f.values()))) for f in feeds)
    return Recovery(tuple(run.steps), {**skipped, **missing}, before, after, samples)


def compose_kept(first: Kept, second: Kept) -> dict[str, dict[int, npt.NDArray[np.int64]]]:
    """What is kept after two removals, in indices of the model before both.

    With it a model is pruned in steps, each recovered towards the same dense model: recover(dense, model, kept, ...).
    """
    kept = {name: dict(axes) for name, axes in first.items()}
    for name, axes in second.items():
        for axis, indices in axes.items():
            before = kept.setdefault(name, {}).get(axis)
            kept[name][axis] = indices if before is None else before[indices]
    return kept


def stages(model: ir.Model, layers: Sequence[Linear]) -> list[list[Linear]]:
    """Group layers by how many of them lie before each, along the longest path; first stage first."""
    depth: dict[ir.Value, int] = {}
    of_node = {layer.node: layer for layer in layers}
    found: dict[int, list[Linear]] = {}
    for node in model.graph:
        read = [v for v in node.inputs if v is not None]
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                read += [v for n in attribute.as_graph().all_nodes() for v in n.inputs if v is not None]
        level = max((depth.get(v, 0) for v in read), default=0)
        if node in of_node:
            found.setdefault(level, []).append(of_node[node])
            level += 1
        depth.update(dict.fromkeys(node.outputs, level))
    return [found[level] for level in sorted(found)]


def _affected(dense: ir.Model, layers: Sequence[Linear], kept: Kept) -> tuple[list[Linear], dict[str, str]]:
    """The layers from the first on whose weights or inputs changed, and those without a counterpart."""
    originals = {str(x.output.name): x for x in linear_layers(dense)[0]}
    changed: set[ir.Value] = set()
    found, missing = [], {}
    graph = layers[0].node.graph if layers else ()
    of_node = {layer.node: layer for layer in layers}
    for node in graph or ():
        dirty = any(v in changed for v in node.inputs if v is not None)
        layer = of_node.get(node)
        if layer is not None:
            original = originals.get(str(layer.output.name))
            dirty = dirty or original is None or _differs(original, layer, kept)
            if dirty and original is None:
                missing[str(layer.output.name)] = "it has no counterpart in the dense model"
            elif dirty:
                found.append(layer)
        if dirty:
            changed.update(node.outputs)
    return found, missing


def _differs(original: Linear, layer: Linear, kept: Kept) -> bool:
    """Whether a layer computes something else than the dense one at the outputs that it still has."""
    rows = kept.get(layer.name, {}).get(layer.output_axis)
    before, after = tensor_of(original.weight).numpy(), tensor_of(layer.weight).numpy()
    if rows is not None:
        before = np.take(before, rows, axis=layer.output_axis)
    return before.shape != after.shape or not np.array_equal(before, after)


def _recover_stage(run: _Run, stage: Sequence[Linear], kept: Kept, method: str) -> None:
    rows = {x.name: kept[x.name][x.output_axis] for x in stage if x.name in kept and x.output_axis in kept[x.name]}
    joined = shadow(run.dense, run.pruned)
    moments = layer_moments(joined, stage, rows, run.feeds, folds=FOLDS, windows=run.windows)
    for linear in stage:
        layer = Layer(linear, Affine(linear.matrix(), linear.bias()), linear.matrix() != 0, linear.shift is not None)
        proposal = METHODS[method].propose(layer, moments[linear.name])
        if METHODS[method].judged_by_outputs:
            run.steps.append(_try_on_outputs(run, layer, method, proposal))
        else:
            if proposal.after < proposal.before:
                _write(layer, proposal.affine)
            run.steps.append(_step(layer, method, proposal, proposal.before, proposal.after))


def _write(layer: Layer, new: Affine) -> None:
    layer.linear.write(new.weight, new.bias - layer.start.bias)


def _step(layer: Layer, method: str, proposal: Proposal, before: float, after: float) -> Step:
    return Step(layer.linear.name, method, before, after, after < before, proposal.detail)


def _try_on_outputs(run: _Run, layer: Layer, method: str, proposal: Proposal) -> Step:
    """Write a proposal, and take it back unless the model's outputs come nearer to the dense model's."""
    touched = [layer.linear.weight, *([layer.linear.shift[0]] if layer.linear.shift else [])]
    tensors = [value.const_value for value in touched]
    before = run.error()
    _write(layer, proposal.affine)
    after = run.error()
    if not after < before:
        for value, tensor in zip(touched, tensors, strict=True):
            value.const_value = tensor
    return _step(layer, method, proposal, before, after)


__all__ = ["FOLDS", "Kept", "Moments", "Recovery", "Step", "compose_kept", "recover", "stages"]
