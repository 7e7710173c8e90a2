"""The oracle of structured pruning: a model without units must equal the model with these units zeroed.

``compare(proto, ...)`` analyses two copies of a model, removes the same random units from one and zeroes them in the
other, runs both in ONNX Runtime (or onnx's reference implementation, where ONNX Runtime has no kernel) and compares.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from onnxprune.graph import inference
from onnxprune.passes.normalise import Normalise
from onnxprune.runtime.overflow import make_exact
from onnxprune.structure.analysis import complete, never_zeroed, walk
from onnxprune.structure.axes import Dynamic, parts
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.structure.view import Findings

Array = npt.NDArray[np.generic]
Runner = Callable[[ir.Model, Mapping[str, npt.NDArray[np.generic]]], list[npt.NDArray[np.generic]]]
ort.set_default_logger_severity(4)

_END = "open end"
_NOT_IN_NUMPY = {t for t in ir.DataType if t.name.startswith(("BFLOAT", "FLOAT8", "FLOAT4"))}
_REFUSED = (
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
)


class _OpenEnds(Findings):
    """Findings of a walk that leaves graph outputs free."""

    def still(self, value: ir.Value, reason: str) -> None:
        if not value.is_graph_output():
            super().still(value, reason)


@dataclass(frozen=True)
class Outcome:
    """What a comparison found.

    Attributes:
        removed: How many atoms went.
        free: How many could have gone.
        mixed: How many more could, inexactly.
        error: The largest difference of an output, relative to its largest value; infinite for a wrong shape.
        changed: Whether zeroing the units changed any output at all.
        false_zeros: Outputs said to be zero where units went, which are not.
    """

    removed: int
    free: int
    mixed: int
    error: float
    changed: bool
    false_zeros: tuple[str, ...] = ()


def analyse_open(model: ir.Model, unmasked: Iterable[str] = ()) -> Structure:
    """Analyse a model whose outputs may lose indices. No rule may fail: what fails is pinned, and nothing shows."""
    names = set(unmasked)
    told = {value for value in model.graph.initializers.values() if value.name in names}
    structure = complete(_OpenEnds(model, inference.infer(model), walk, never_zeroed(model) | told))
    assert not [name for name in structure.unruled if "failed" in name], structure.unruled
    return structure


def pick(structure: Structure, share: float, rng: np.random.Generator, *, exact: bool = True) -> tuple[Bools, int, int]:
    """Choose a random share of all removable atoms so that no axis becomes empty.

    Returns:
        Flags by atom id, how many could be chosen from, and how many are mixed.
    """
    removed = np.zeros(structure.terms.count, bool)
    alive, of = _members(structure)
    mixed = structure.terms.mixed
    atoms = np.array([a for a in of if not (exact and mixed[a])], np.int64)
    inexact = sum(bool(mixed[a]) for a in of)
    rng.shuffle(atoms)
    target = -(-len(atoms) * share // 1)
    for atom in atoms.tolist():
        if removed.sum() >= target:
            break
        after = {k: alive[k] & ~hit for k, hit in of[atom].items()}
        if all(flags.any() for flags in after.values()):
            alive.update(after)
            removed[atom] = True
    return removed, len(atoms), inexact


def _members(structure: Structure) -> tuple[dict[int, Bools], dict[int, dict[int, Bools]]]:
    """Return which indices of each axis are alive, and for each atom which indices of which axis it takes away."""
    alive: dict[int, Bools] = {}
    of: dict[int, dict[int, Bools]] = defaultdict(dict)
    for axes in structure.axes.values():
        for ids in (i for axis in axes for i in parts(axis)):
            if id(ids) in alive:
                continue
            alive[id(ids)] = np.ones(len(ids), bool)
            rows, atoms = structure.terms.members(ids)
            for atom in np.unique(atoms).tolist():
                hit = np.zeros(len(ids), bool)
                hit[rows[atoms == atom]] = True
                of[atom][id(ids)] = hit
    return alive, of


def compare(
    proto: onnx.ModelProto,
    share: float = 0.4,
    seed: int = 0,
    *,
    exact: bool = True,
    unmasked: Sequence[str] = (),
    feeds: Mapping[str, Array] | None = None,
) -> Outcome:
    """Remove units from one copy of a model, zero them in another, and compare what both compute."""
    smaller, zeroed, original = (normalised(proto) for _ in range(3))
    a, b = analyse_open(smaller, unmasked), analyse_open(zeroed, unmasked)
    removed, free, mixed = pick(a, share, np.random.default_rng(seed), exact=exact)
    if not removed.any():
        return Outcome(0, free, mixed, 0.0, False)
    keep = b.keep(removed)
    claims = [_claim(b, keep, out) for out in zeroed.graph.outputs]
    remove(a, removed)
    zero_units(b, removed)
    runner, before = _runner(original, feeds or {})
    first, second = runner(smaller, feeds or {}), runner(zeroed, feeds or {})
    error, wrong = 0.0, []
    for out, (flags, zero), x, y in zip(zeroed.graph.outputs, claims, first, second, strict=True):
        error = max(error, difference(x, _cut(y, flags)))
        for axis, kept in flags.items():
            gone = np.compress(~kept, y, axis=axis)
            if zero[axis] and y.dtype.kind in "fb" and np.abs(gone.astype(np.float64)).max(initial=0) > 1e-6:
                wrong.append(f"{out.name}[{axis}]")
    changed = any(difference(x, y) > 0 for x, y in zip(second, before, strict=True))
    return Outcome(int(removed.sum()), free, mixed, error, changed, tuple(wrong))


def _claim(structure: Structure, keep: object, out: ir.Value) -> tuple[dict[int, Bools], list[bool]]:
    """Return the surviving indices of an output's axes, and which axes are said to be zero where units went."""
    source = out.producer().inputs[0] if _is_open_end(out) else out  # type: ignore[union-attr]
    flags = {}
    for i, axis in enumerate(structure.axes.get(source, [])):
        if not isinstance(axis, Dynamic) and not (kept := keep.ids(axis)).all():  # type: ignore[attr-defined]
            flags[i] = kept
    return flags, list(structure.zero.get(source, []))


def _is_open_end(out: ir.Value) -> bool:
    node = out.producer()
    return node is not None and str(node.name).startswith(_END)


def _cut(array: Array, flags: Mapping[int, Bools]) -> Array:
    for axis, kept in flags.items():
        array = np.compress(kept, array, axis=axis)
    return array


def difference(x: Array, y: Array) -> float:
    """Return the largest difference relative to the largest value; 1 for differing integers, inf for shapes."""
    if x.shape != y.shape:
        return float("inf")
    if x.dtype.kind not in "fcV":
        return float((x != y).any())
    a, b = (v.astype(np.complex128 if v.dtype.kind == "c" else np.float64) for v in (x, y))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    if (~finite & ~same).any():
        return float("inf")
    scale = max(np.abs(b[finite]).max(initial=0.0), 1e-6)
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0) / scale)


def normalised(proto: onnx.ModelProto) -> ir.Model:
    """Load a model with its constants lifted."""
    model = ir.from_proto(proto)
    Normalise()(model)
    return model


def _runner(model: ir.Model, feeds: Mapping[str, Array]) -> tuple[Runner, list[Array]]:
    """Find what runs a model: ONNX Runtime, or else onnx's reference implementation. Return it with the outputs."""
    try:
        return run, run(model, feeds)
    except _REFUSED as error:
        if any(node.domain not in ("", "ai.onnx") for node in model.graph):
            raise NoKernel(str(error)) from error
    try:
        return run_reference, run_reference(model, feeds)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise NoKernel(str(error)) from error


def run(model: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a model in ONNX Runtime without optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    left_out = make_exact(options, model)
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=[*left_out],
    )
    return [np.asarray(o) for o in session.run(None, dict(feeds))]


def run_reference(model: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a model in onnx's reference implementation."""
    return [np.asarray(o) for o in ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))]


class NoKernel(Exception):
    """Neither ONNX Runtime nor the reference implementation runs the model."""


# -- building models ------------------------------------------------------------------------------------------------


def node_model(
    node: onnx.NodeProto,
    constants: Mapping[str, Array | onnx.TensorProto],
    opsets: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Build a model of one node on constants alone; every output goes through Identity."""
    names = [o for o in node.output if o]
    ends = [onnx.helper.make_node("Identity", [o], [f"{o}_end"], name=f"{_END} {o}") for o in names]
    tensors = []
    for name, content in constants.items():
        tensor = onnx.TensorProto()
        if isinstance(content, onnx.TensorProto):
            tensor.CopyFrom(content)
        else:
            tensor = ir.to_proto(ir.Tensor(np.array(content, order="C")))
        tensor.name = name
        tensors.append(tensor)
    graph = onnx.helper.make_graph(
        [node, *ends], "node", [], [onnx.helper.make_empty_tensor_value_info(f"{o}_end") for o in names], tensors
    )
    imports = [onnx.helper.make_opsetid(d, v) for d, v in (opsets or {"": 23, "com.microsoft": 1}).items()]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10))
    _type_outputs(model)
    return ir.to_proto(model)


def _type_outputs(model: ir.Model) -> None:
    """Give the graph outputs the types that inference finds; a graph output must have one."""
    facts = inference.infer(model)
    for out in model.graph.outputs:
        dtype = ir.DataType(facts.dtype(out))
        if dtype in _NOT_IN_NUMPY:  # read as float, ONNX Runtime cannot hand it over
            end = out.producer()
            end.op_type, dtype = "Cast", ir.DataType.FLOAT
            end.attributes["to"] = ir.AttrInt64("to", int(dtype))
        if dtype != ir.DataType.UNDEFINED:
            out.type = ir.TensorType(dtype)
