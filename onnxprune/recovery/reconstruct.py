"""Recovery layer by layer, towards what the dense network computes.

In topological order, each contraction of the pruned network gets the activations that the network before it now gives,
and the dense network's outputs as targets. A *method* proposes new weights and biases from their moments; a proposal is
kept only where it lowers the error on inputs held back from it. Layers that lie side by side (query, key and value)
share one pass over the data. Others see more than one layer: `batchnorm`, and `merge` and `expected-bias`,
which need no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.data.batches import Inputs
from onnxprune.graph.following import dense_to_pruned, scale_behind
from onnxprune.graph.hints import Feeds
from onnxprune.graph.linear import Linear, Matrix, linear_layers, set_numbers, tensor_of
from onnxprune.graph.tensors import like
from onnxprune.model_io.bodies import nodes_of
from onnxprune.recipe.fields import Effort
from onnxprune.recipe.granularity import Shape
from onnxprune.recovery import batchnorm
from onnxprune.recovery.attention import query_mixes
from onnxprune.recovery.fitting import WEIGHTS_AT_ONCE, Layer, Proposal
from onnxprune.recovery.methods import propose
from onnxprune.recovery.places import experts_left, rows_left
from onnxprune.recovery.registry import METHODS, model_method
from onnxprune.recovery.resumed import Known, stage_key
from onnxprune.recovery.solve import Affine, parts
from onnxprune.recovery.streamed import FOLDS, Pair, streamed_moments, with_other_rows
from onnxprune.runtime.countdown import Countdown
from onnxprune.runtime.session import make_session
from onnxprune.runtime.session import run as run_session
from onnxprune.runtime.statistics import layer_moments, shadow
from onnxprune.runtime.stream.gather import Batches
from onnxprune.runtime.stream.store import Store
from onnxprune.structure.rewrite import Kept

_FITS_QUERIES = ("least-squares",)  # what fits all weights of a layer anew

_WEIGHTS_IN_MEMORY = 64 << 20  # bytes of new weights
_NUMBERS = 1 << 22  # of an output that are compared at once


@dataclass(frozen=True)
class Step:
    """What was tried on one layer.

    Attributes:
        layer: Name of its weight.
        method: What was tried.
        before, after: Relative error on held-back inputs: of the layer's output for methods that are judged by it,
            of the model's outputs for the others. None where no inputs were needed.
        applied: Whether it was kept.
        detail: What else there is to know: the ridge that was chosen.
    """

    layer: str
    method: str
    before: float | None
    after: float | None
    applied: bool
    detail: str = ""


@dataclass
class State:
    """The state of one recovery.

    Attributes:
        trained: Whether the pruned model was trained since it was cut.
        inputs: The samples that may be used.
        held: Samples that are held back from every fit; empty where no method asks for any.
        anchors: By weight, its numbers when a run with a trained model began; see `Layer.anchor`.
        refused: Layers with methods that the model's outputs spoke against: they are not tried again.
        known: What a run that was interrupted has found already.
    """

    dense: ir.Model
    pruned: ir.Model
    kept: Kept
    samples: Batches
    windows: int
    pattern: Shape | None
    progress: Callable[[str], None]
    trained: bool = False
    inputs: Inputs = field(default_factory=dict)
    held: Inputs = field(default_factory=dict)
    effort: Effort = "low"
    seed: int = 0
    steps: list[Step] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    anchors: dict[str, Matrix] = field(default_factory=dict)
    refused: set[tuple[str, str]] = field(default_factory=set)
    known: Known = field(default_factory=Known)
    _outputs: dict[int, dict[str, npt.NDArray[np.generic]]] = field(default_factory=dict)
    _outputs_session: ort.InferenceSession | None = None
    _store: Store = field(default_factory=Store)
    _new_weights: Store = field(default_factory=lambda: Store(_WEIGHTS_IN_MEMORY))

    @property
    def feeds(self) -> Sequence[Feeds]:
        """The batches."""
        return self.samples.feeds

    def keep(self, layer: Linear) -> None:
        """Keep the new weights of a layer: on disk, where there are many."""
        tensor = layer.weight.const_value
        if isinstance(tensor, ir.Tensor):
            layer.weight.const_value = like(tensor, self._new_weights.held(tensor.numpy()))

    def error(self, feeds: Sequence[Feeds] | None = None) -> float:
        """The model's error, by default on the last fold, which no globally judged proposal is made from."""
        chosen = self.feeds[FOLDS - 1 :: FOLDS] if feeds is None else feeds
        session = make_session(self.pruned)
        if self._outputs_session is None:
            self._outputs_session = make_session(self.dense)
        sums: dict[str, Matrix] = {}
        for feed in chosen:
            if id(feed) not in self._outputs:
                outputs = {n: np.asarray(a) for n, a in run_session(self._outputs_session, feed).items()}
                self._outputs[id(feed)] = self._store.kept(outputs, len(self.feeds))
            ours = run_session(session, feed)
            for name, dense in self._outputs[id(feed)].items():
                if np.asarray(dense).dtype.kind == "f":
                    sums[name] = sums.get(name, np.zeros(2)) + _gap(np.asarray(ours[name]), np.asarray(dense))
        return max((float(a / max(b, np.finfo(np.float64).tiny)) for a, b in sums.values()), default=0.0)

    def attempt(self, layer: str, method: str, values: Sequence[ir.Value], write: Callable[[], None]) -> None:
        """Write to some constants, and take it back unless the model's outputs come nearer to the dense model's."""
        tensors = [value.const_value for value in values]
        if (layer, method) in self.refused:
            return
        before = self.error()
        write()
        after = self.error()
        if not after < before:
            self.refused.add((layer, method))
            for value, tensor in zip(values, tensors, strict=True):
                value.const_value = tensor
        self.steps.append(Step(layer, method, before, after, after < before))


def _gap(ours: npt.NDArray[np.generic], dense: npt.NDArray[np.generic]) -> Matrix:
    """Squares of the difference and of the dense output, summed; some at a time, for outputs with a vocabulary."""
    total, pair = np.zeros(2), (ours.reshape(-1), dense.reshape(-1))
    for some in parts(dense.size, _NUMBERS):
        a, b = (x[some].astype(np.float64) for x in pair)
        total += [np.square(a - b).sum(), np.square(b).sum()]
    return total


def stages(model: ir.Model, layers: Sequence[Linear]) -> list[list[Linear]]:
    """Group layers by how many of them lie before each, along the longest path; first stage first."""
    depth: dict[ir.Value, int] = {}
    of_node = {layer.node: layer for layer in layers}
    by_level: dict[int, list[Linear]] = {}
    for node in model.graph:
        read = [v for v in node.inputs if v is not None]
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                read += [v for n in nodes_of(attribute.as_graph()) for v in n.inputs if v is not None]
        level = max((depth.get(v, 0) for v in read), default=0)
        if node in of_node:
            by_level.setdefault(level, []).append(of_node[node])
            level += 1
        depth.update(dict.fromkeys(node.outputs, level))
    return [by_level[level] for level in sorted(by_level)]


def last_layers(model: ir.Model, layers: Sequence[Linear]) -> set[str]:
    """Return the names of the layers whose outputs no other layer reads."""
    nodes = {layer.node for layer in layers}
    read: set[ir.Value] = set()  # by a layer, through whatever lies between
    for node in reversed(list(model.graph)):
        if node in nodes or any(out in read for out in node.outputs):
            read.update(value for value in node.inputs if value is not None)
    return {layer.name for layer in layers if layer.output not in read}


# -- the methods ----------------------------------------------------------------------------------------------------


def recover_layers(run: State, method: str, only: Sequence[ir.Node] | None = None) -> None:
    every, refused = linear_layers(run.pruned, stacks=not METHODS.find(method).judged_by_outputs)
    layers = [x for x in every if only is None or x.node in only]
    originals, changed = by_output(run.dense), _changed(run)
    affected = [x for x in layers if x.output in changed]
    run.skipped.update(refused)
    missing = [str(x.output.name) for x in affected if str(x.output.name) not in originals]
    run.skipped.update(dict.fromkeys(missing, "it has no counterpart in the dense model"))
    known = [x for x in layers if str(x.output.name) in originals]
    other_rows = with_other_rows(
        run.dense, run.pruned, [(x, originals[str(x.output.name)]) for x in known], run.samples
    )
    known = [x for x in known if x.output not in other_rows]
    run.skipped.update((str(out.name), "units of its rows are gone") for out in other_rows if out in changed)
    affected = [x for x in affected if x in known]
    if METHODS.find(method).judged_by_outputs:
        for stage in stages(run.pruned, affected):
            run.progress(stage[0].name)
            _recover_stage(run, stage, originals, method)
        return
    moved = {str(value.name) for value in changed}
    mixes = query_mixes(run.dense, run.kept, run.samples, {x.name for x in known}) if method in _FITS_QUERIES else {}
    pairs = [
        Pair.of(x, originals[str(x.output.name)], rows_left(x, run.kept), mixes.get(x.name), experts_left(x, run.kept))
        for x in known
    ]
    pairs = [p for p in pairs if p.mix is not None or moved & {str(p.pruned.output.name), p.shortcut}]
    last = last_layers(run.pruned, every)
    count, name = Countdown("layer", len(pairs), run.progress), run.known.next_pass()

    def key(stage: Sequence[Pair]) -> str:
        return stage_key(name, [pair.pruned for pair in stage])

    for stage_moments in streamed_moments(run.dense, run.pruned, pairs, run.samples, lambda s: run.known.has(key(s))):
        count(len(stage_moments))
        inside, begun = [pair for pair, _ in stage_moments], len(run.steps)
        if run.known.has(key(inside)):
            run.steps += [Step(**step) for step in run.known.load(key(inside), [pair.pruned for pair in inside])]
            continue
        for pair, moments in stage_moments:
            factor, _ = pair.to_pruned()
            layer = replace(_layer(run, pair.pruned, pair.dense, factor, pair.mix), is_last=pair.pruned.name in last)
            proposal = propose(method, layer, moments)
            run.steps.append(_step(layer, method, proposal))
            if proposal.after < proposal.before:
                _write(layer, proposal.affine)
                run.keep(layer.linear)
        run.known.save(key(inside), [pair.pruned for pair in inside], run.steps[begun:])


def as_before_pruning(run: State, nodes: Sequence[ir.Node]) -> None:
    """Give the layers of some nodes of the pruned model the dense model's weights and biases that are left."""
    originals = by_output(run.dense)
    for linear in linear_layers(run.pruned, stacks=True)[0]:
        original = originals.get(str(linear.output.name))
        if linear.node in nodes and original is not None:
            rows = rows_left(linear, run.kept)
            factor, offset = dense_to_pruned(original, linear, rows)
            layer = _layer(run, linear, original, factor)
            bias = original.bias().reshape(-1)[slice(None) if rows is None else rows].reshape(factor.shape)
            _write(layer, Affine(layer.dense, factor * bias + offset))


def _changed(run: State) -> set[ir.Value]:
    """The values from the first node on that reads other values than in the dense model, or whose weights changed."""
    layers = {x.node: x for x in linear_layers(run.pruned, stacks=True)[0]}
    originals = by_output(run.dense)
    made_of = {str(out.name): _activations(node) for node in run.dense.graph for out in node.outputs}
    changed: set[ir.Value] = set()
    for node in run.pruned.graph:
        layer = layers.get(node)
        original = None if layer is None else originals.get(str(layer.output.name))
        dirty = any(v in changed for v in node.inputs if v is not None)
        dirty = dirty or any(made_of.get(str(out.name)) != _activations(node) for out in node.outputs)
        if dirty or (layer is not None and (original is None or differs(original, layer, run.kept))):
            changed.update(node.outputs)
    return changed


def _activations(node: ir.Node) -> list[str]:
    return [str(v.name) for v in node.inputs if v is not None and v.const_value is None]


def by_output(model: ir.Model) -> dict[str, Linear]:
    return {str(x.output.name): x for x in linear_layers(model, stacks=True)[0]}


def differs(original: Linear, layer: Linear, kept: Kept) -> bool:
    """Whether a layer computes something else than the dense one at the outputs that it still has."""
    counts = {layer.output_axis} if layer.stack is None else {layer.output_axis, layer.stack.axis}
    rows = {axis: i for axis, i in kept.get(layer.name, {}).items() if axis in counts}
    before, after = left_of(original, rows), tensor_of(layer.weight).numpy()
    return before.shape != after.shape or not np.array_equal(before, after)


def left_of(original: Linear, kept: Mapping[int, npt.NDArray[np.int64]]) -> npt.NDArray[np.generic]:
    """What is left of a dense layer's weights."""
    array = tensor_of(original.weight).numpy()
    for axis, indices in kept.items():
        array = np.take(array, indices, axis=axis)
    return array


def _recover_stage(run: State, stage: Sequence[Linear], originals: Mapping[str, Linear], method: str) -> None:
    rows = {x.name: run.kept[x.name][x.output_axis] for x in stage if x.output_axis in run.kept.get(x.name, {})}
    joined = shadow(run.dense, run.pruned)
    moments_by_layer = layer_moments(joined, stage, rows, run.feeds, folds=FOLDS, windows=run.windows)
    for linear in stage:
        if (linear.name, method) in run.refused:
            continue
        original = originals[str(linear.output.name)]
        factor, offset = dense_to_pruned(original, linear, rows.get(linear.name))
        moments = [m.mapped(factor, offset) for m in moments_by_layer[linear.name]]
        layer = _layer(run, linear, original, factor)
        proposal = propose(method, layer, moments)
        touched = [linear.weight, *([linear.shift[0]] if linear.shift else [])]
        run.attempt(linear.name, method, touched, partial(_write, layer, proposal.affine))


def _layer(run: State, linear: Linear, original: Linear, factor: Matrix, mix: Matrix | None = None) -> Layer:
    """One layer as its methods see it.

    Args:
        run: The recovery.
        linear, original: The layer, and that of the dense model.
        factor: Brings the dense network's outputs to the scale of the pruned ones.
        mix: See `Pair.mix`.
    """
    large = tensor_of(linear.weight).size > WEIGHTS_AT_ONCE  # then float32, in which they are written
    dtype = np.float32 if large else np.float64
    start = Affine(_numbers(linear, tensor_of(linear.weight).numpy(), dtype), linear.bias())
    kept = run.kept.get(linear.name, {})
    if mix is not None:
        kept = {axis: indices for axis, indices in kept.items() if axis != linear.output_axis}
    dense = _numbers(linear, left_of(original, kept), dtype)
    dense = dense if mix is None else mix @ dense
    dense = dense if (factor == 1).all() else (dense * factor[:, :, None]).astype(dtype)
    anchor = run.anchors.setdefault(linear.name, start.weight) if run.trained else dense
    gain = scale_behind(linear)
    return Layer(linear, start, start.weight != 0, linear.shift is not None, dense, anchor, gain, run.pattern)


def _numbers(linear: Linear, array: npt.NDArray[np.generic], dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
    """Weights of the shape of a layer's as they act; what is in this type already is not copied."""
    matrix: npt.NDArray[Any] = linear.to_matrix(array).astype(dtype, copy=False)
    return matrix if linear.scale == 1 else (matrix * linear.scale).astype(dtype, copy=False)


def _write(layer: Layer, new: Affine) -> None:
    layer.linear.write(new.weight, new.bias - layer.start.bias)


def _step(layer: Layer, method: str, proposal: Proposal) -> Step:
    better = proposal.after < proposal.before
    return Step(layer.linear.name, method, proposal.before, proposal.after, better, proposal.detail)


@model_method(
    "batchnorm",
    needs="calibration",
    judge="of the model",
    source="Ioffe and Szegedy 2015, Batch Normalization, algorithm 2; Li et al. 2020, EagleEye, section 3.3",
)
def _reestimate(run: State, method: str) -> None:
    """mean = E[x], variance = Var[x] of what each BatchNormalization now reads."""
    used = [feed for i, feed in enumerate(run.feeds) if i % FOLDS != FOLDS - 1] or run.feeds
    for node in batchnorm.normalisations(run.pruned, _changed(run)):
        values = [v for v in node.inputs[3:5] if v is not None]
        statistics = batchnorm.statistics(run.pruned, node, used)
        run.progress(str(values[0].name))
        if statistics is not None:
            run.attempt(str(values[0].name), method, values, partial(_set_all, values, statistics))


def _set_all(values: Sequence[ir.Value], arrays: Sequence[Matrix]) -> None:
    for value, array in zip(values, arrays, strict=True):
        set_numbers(value, array)
