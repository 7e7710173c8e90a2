"""removed == masked: the oracle of the project, for any model.

    verdict = oracle.check(load, share=0.6, seed=1, exact=True)
    verdict.difference   largest difference in ONNX Runtime between the pruned model and its masked twin
    verdict.share        prunable share of the weight parameters

`load` gives a fresh, normalised `ir.Model` at every call. Random atoms are removed from one copy and zeroed in another;
both must compute the same at two settings of the dynamic dimensions. Nothing here knows any architecture.
"""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.errors import DataError
from onnxprune.graph.inference import infer
from onnxprune.graph.shapes import Facts
from onnxprune.passes.normalise import Normalise
from onnxprune.runtime.comparison import compare_outputs
from onnxprune.runtime.inputs import candidate_sizes, random_inputs, working_inputs
from onnxprune.runtime.session import make_session, run
from onnxprune.structure.analysis import analyse
from onnxprune.structure.axes import parts
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove
from onnxprune.structure.structure import Structure

Load = Callable[[], ir.Model]
Feeds = dict[str, npt.NDArray[Any]]

TOLERANCE = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 5e-2}
"""Largest difference allowed, relative to the largest output; 1e-4 for every other type."""


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        share: Weight parameters with at least one free atom, over all.
        candidates: Atoms that could go.
        removed: Atoms that went.
        parameters: Constant elements left, over those before.
        difference: Largest difference of any output at any setting, relative to the largest output.
        tolerance: What it may be.
        settings: How many settings of the dynamic dimensions were run.
        signal: How much the masked twin's outputs depend on its inputs, relative to the largest output; where it is
            nothing, agreement tells nothing.
        seconds: CPU time of one analysis.
    """

    share: float
    candidates: int
    removed: int
    parameters: float
    difference: float
    tolerance: float
    settings: int
    signal: float
    seconds: float

    @property
    def good(self) -> bool:
        return self.difference <= self.tolerance


def normalised(source: str | os.PathLike | onnx.ModelProto) -> ir.Model:
    """Read a model and bring it into the form that analysis wants."""
    model = ir.from_proto(source) if isinstance(source, onnx.ModelProto) else ir.load(source)
    Normalise()(model)
    return model


def with_random_weights(model: ir.Model, seed: int = 0) -> ir.Model:
    """Give a model whose weights are made by ConstantOfShape, all equal, random ones: only then outputs tell much."""
    rng = np.random.default_rng(seed)
    for node in list(model.graph):
        shape = node.inputs[0].const_value if node.op_type == "ConstantOfShape" and node.inputs[0] is not None else None
        if shape is None:
            continue
        out, extents = node.outputs[0], [int(n) for n in shape.numpy()]
        if len(extents) > 1:
            array = rng.standard_normal(extents, np.float32) * np.float32(np.sqrt(2 / np.prod(extents[1:])))
        else:
            array = rng.uniform(0.5, 1.5, extents).astype(np.float32)
        value = ir.Value(name=out.name, shape=ir.Shape(extents), type=ir.TensorType(ir.DataType.FLOAT))
        value.const_value = ir.Tensor(array, name=out.name)
        out.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        model.graph.register_initializer(value)
    return model


def check(
    load: Load, share: float, seed: int = 0, *, exact: bool = True, facts: Callable[[ir.Model], Facts] = infer
) -> Verdict:
    """Remove a share of all atoms at random and compare the result with the masked twin.

    Args:
        load: Gives a fresh copy of the model.
        share: Of the atoms, how many go; fewer where an axis would be left empty.
        seed: Of the choice and of the inputs.
        exact: Leave atoms of mixed axes alone; their oracle is the twin whose mixing nodes run over survivors.
        facts: Tells the shapes of a model; by default as onnx infers them, without a run.
    """
    model = load()
    start = time.process_time()
    structure = analyse(model, facts(model))
    seconds = time.process_time() - start
    assert not [name for name in structure.unruled if "failed" in name]
    prunable, weights = structure.prunable_share()
    before = _parameters(model)
    candidates = _candidates(structure, exact)
    removed = choose(structure, candidates, share, seed)
    sizes = [structure.facts.first.sizes, structure.facts.second.sizes]
    remove(structure, removed)
    RemoveUnusedNodesPass()(model)
    twin = load()
    zero_units(analyse(twin, facts(twin)), removed)
    difference, settings, signal = compare(twin, model, sizes, seed)
    return Verdict(
        share=prunable / max(weights, 1),
        candidates=len(candidates),
        removed=int(removed.sum()),
        parameters=_parameters(model) / max(before, 1),
        difference=difference,
        tolerance=max((TOLERANCE.get(t, 1e-4) for t in _types(twin)), default=1e-4),
        settings=settings,
        signal=signal,
        seconds=seconds,
    )


def choose(structure: Structure, candidates: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return removal flags by atom id for a random share of the candidates; no axis is left empty."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(structure.terms.count, bool)
    removed[rng.permutation(candidates)[: int(len(candidates) * share)]] = True
    for ids, least in structure.least:  # experts that a router takes of each token
        rows, atoms = structure.terms.members(ids)
        for row in range(len(ids)):
            if len(ids) - len(np.unique(rows[removed[atoms]])) < least:
                removed[atoms[rows == row]] = False
    seen: set[int] = set()
    for axes in structure.axes.values():
        for ids in (ids for axis in axes for ids in parts(axis)):
            if id(ids) in seen or not len(ids):
                continue
            seen.add(id(ids))
            rows, atoms = structure.terms.members(ids)
            if len(np.unique(rows[removed[atoms]])) == len(ids):  # all would go: one comes back, with all it needs
                removed[atoms[rows == rng.integers(len(ids))]] = False
    return removed


def compare(twin: ir.Model, pruned: ir.Model, sizes: list[Mapping[str, int]], seed: int) -> tuple[float, int, float]:
    """Return the largest relative difference of two models, at how many settings they were run, and the signal."""
    a, b = make_session(twin, optimize="off"), make_session(pruned, optimize="off")
    worst, signal = 0.0, 0.0
    settings = _settings(twin, a, sizes, seed)
    for feeds, others in settings:
        expected = run(a, feeds)
        agreement = compare_outputs(expected, run(b, feeds))
        worst = max(worst, agreement.max_rel if agreement.finite else np.inf)
        signal = max(signal, compare_outputs(expected, run(a, others)).max_rel)
    return worst, len(settings), signal


def _settings(
    model: ir.Model, session: ort.InferenceSession, sizes: list[Mapping[str, int]], seed: int
) -> list[tuple[Feeds, Feeds]]:
    """Two random inputs at each setting of the analysis where ONNX Runtime runs them, else at others that it does."""
    found: list[tuple[Feeds, Feeds]] = []
    with contextlib.suppress(DataError):
        for setting in sizes[: 1 if sizes[0] == sizes[1] else 2]:
            feeds = random_inputs(model, seed=seed, sizes=setting)
            run(session, feeds)
            found.append((feeds, random_inputs(model, seed=seed + 1, sizes=setting)))
        return found
    pair = [working_inputs(model, seed=s, count=2, session=session) for s in (seed, seed + 1)]
    found = list(zip(*pair, strict=False))  # of a branch that reads no cache one may have more than the other
    return [*found, *_another_length(model, session, found[0][0], seed)] if len(found) == 1 else found


def _another_length(
    model: ir.Model, session: ort.InferenceSession, known: Feeds, seed: int
) -> list[tuple[Feeds, Feeds]]:
    """Two random inputs of other lengths than the known ones, where the model runs one batch size only."""
    for sizes in candidate_sizes(model):
        feeds = random_inputs(model, seed=seed, sizes=sizes)
        if all(feeds[name].shape == known[name].shape for name in feeds):
            continue
        with contextlib.suppress(DataError):
            run(session, feeds)
            return [(feeds, random_inputs(model, seed=seed + 1, sizes=sizes))]
    return []


def _candidates(structure: Structure, exact: bool) -> npt.NDArray[np.int64]:
    chosen = [group.atoms for group in structure.groups if not (exact and group.inexact)]
    return np.concatenate([*chosen, np.zeros(0, np.int64)])


def _parameters(model: ir.Model) -> int:
    return sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None)


def _types(model: ir.Model) -> set[ir.DataType]:
    return {t for v in model.graph.initializers.values() if (t := v.dtype) is not None}


def shared_zoo() -> list[Path]:
    """The real models of the shared folder, if there is one."""
    root = Path(os.environ.get("ONNXPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    return sorted((root / "zoo").glob("*.onnx"))


def light_models() -> list[Path]:
    """The full-size models of the onnx wheel whose weights are made when they run."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return [Path(p) for p in sorted(glob.glob(str(folder / "light_*.onnx")))]
