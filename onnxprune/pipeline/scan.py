"""Which layers, or groups of units, can be pruned how far: one at a time, everything else left whole.

The scan of Han et al. 2015 (section 4.1 and figure 6), of a metric on labelled data or of the error of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.data.calibration import Calibration
from onnxprune.data.readers import AnyData, Data, open_data
from onnxprune.data.text import check_text
from onnxprune.data.working import give_inputs, give_samples
from onnxprune.errors import NothingToPrune, RecipeError
from onnxprune.graph.tensors import Array
from onnxprune.pipeline.preflight import check_labels, check_scores
from onnxprune.pipeline.prepare import prepare
from onnxprune.recipe.defaults import settled
from onnxprune.recipe.recipe import Recipe, make_recipe
from onnxprune.recipe.settings import Settings
from onnxprune.runtime.jobs import with_jobs
from onnxprune.runtime.libraries import custom_operators
from onnxprune.scoring import find_criterion, prunable_weights
from onnxprune.scoring.evidence import Evidence
from onnxprune.scoring.units import score_units
from onnxprune.selection.eligible import eligible_groups, eligible_weights
from onnxprune.selection.sensitivity import (
    LEVELS,
    UNIT_LEVELS,
    Measure,
    OutputError,
    Sensitivity,
    main_constants,
    replace_constants,
    scan,
    scan_units,
)
from onnxprune.structure.structure import Structure
from onnxprune.synthetic.samples import calibration_of
from onnxprune.verification.evaluate import start_meter
from onnxprune.verification.notebook import in_notebook

if TYPE_CHECKING:
    from typing_extensions import Unpack

OUTPUT_ERROR = "output error"


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        measured: ``output error`` (relative, squared) or the name of a metric.
        dense: The same of the model as it is.
        structure: ``weights`` or ``channels``.
        table: By layer or group, and level.
        skipped: Layers and groups that were not scanned, with the reason.
        nodes: The name of the node that reads each weight.
    """

    measured: str
    dense: float
    structure: str
    table: Sensitivity
    skipped: Mapping[str, str]
    nodes: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Scan: {self.measured} of {len(self.table.names)} {self.structure} at {len(self.table.levels)} levels>"

    def _repr_html_(self) -> str:
        names = zip(self.table.names, self.table.sizes, self.table.errors.tolist(), strict=True)
        heads = ("", "weights", *(f"{level:g}" for level in self.table.levels))
        title = f"{self.measured} when a share of one alone goes (as it is: {self.dense:.4g})"
        return in_notebook(title, heads, [(name, size, *values) for name, size, values in names])

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "measured": self.measured,
            "dense": self.dense,
            "structure": self.structure,
            "levels": list(self.table.levels),
            "rows": [
                {"name": name, "parameters": size, "values": values}
                for name, size, values in zip(
                    self.table.names, self.table.sizes, self.table.errors.tolist(), strict=True
                )
            ],
            "skipped": dict(self.skipped),
        }


def sensitivity(
    model: str | Path | onnx.ModelProto | ir.Model,
    *,
    calibration: AnyData | None = None,
    eval_data: AnyData | None = None,
    metric: str | None = None,
    inputs: AnyData | None = None,
    custom_ops: Sequence[str | Path] = (),
    levels: Sequence[float] | None = None,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
    **settings: Unpack[Settings],
) -> Scan:
    """Prune each layer, or each group of units, alone to several levels and measure the model.

    Args:
        model: A path, an onnx.ModelProto or an onnx_ir.Model. It is never changed.
        calibration: Inputs, as an .npz, a folder of images, ...: the error of the outputs is measured on them, unless
            there are ``eval_data``; criteria that need data look at them. ``synthetic``: they are made up.
        eval_data: Labelled inputs, in any form that ``calibration`` may have: a metric is measured.
        metric: ``accuracy``, ``top5``, ``mse``, ``agreement`` or ``module:function``; by default the first that fits.
        inputs: Inputs that the model runs with, where none are found.
        custom_ops: Libraries of custom operators that the model needs.
        levels: Shares to try, each between 0 and 1.
        jobs: Tries at a time, as joblib has it: -1 is one a core; None is one, or what ``joblib.parallel_config`` says.
        progress: Called with the name of each layer.
        **settings: Those fields of `Recipe` that say what may go and what goes first: ``structure`` (weights or
            channels), ``criterion``, ``kinds``, ``allow_inexact``, ``exclude``, ``only``, ``ends``, ``seed``.

    Raises:
        ModelError: The model cannot be read.
        RecipeError: A setting is wrong, or there is nothing to measure on.
        DataError: The data do not fit the model.
        NothingToPrune: Nothing may be pruned under these settings.

    >>> import onnxprune
    >>> scan = onnxprune.sensitivity("models/digits_mlp.onnx", eval_data="models/digits_mlp.npz", levels=(0.5, 0.9))
    >>> scan
    <Scan: accuracy of 3 weights at 2 levels>
    """
    of = settings.get("structure", "weights")
    if of not in ("weights", "channels"):
        raise RecipeError(f"--structure: a scan is of weights or of channels, not of {of}")
    recipe = make_recipe(sparsity=0.0, **{"ends": "prune", **settings})
    chosen = _levels(recipe, levels)
    if calibration is None and eval_data is None:
        raise RecipeError("there is nothing to measure on: give --calibration FILE.npz, or --eval-data with labels")
    check_text(recipe.reading, (calibration, eval_data, inputs))
    check_scores(recipe, calibration, trains=False)
    with custom_operators(custom_ops), with_jobs(jobs):
        original = model_io.load_any(model)
        give_inputs(original, inputs, recipe.reading)
        return _scan(original, recipe, chosen, calibration, eval_data, metric, progress)


def _scan(
    original: ir.Model,
    recipe: Recipe,
    levels: tuple[float, ...],
    calibration: AnyData | None,
    eval_data: AnyData | None,
    metric: str | None,
    progress: Callable[[str], None] | None,
) -> Scan:
    samples = Calibration() if calibration is None else calibration_of(original, calibration, recipe, progress)
    if calibration is not None:
        check_labels(recipe, samples)
        give_samples(original, samples.inputs)
    structure = prepare(original.clone())
    if eval_data is None:
        measure: Measure = OutputError(structure.model, samples.inputs)
        measured, dense = OUTPUT_ERROR, 0.0
    else:
        by_metric = _Metric(structure.model, open_data(structure.model, eval_data, recipe.reading), metric)
        measure, measured, dense = by_metric, by_metric.name, by_metric.dense
    table, skipped = _scanned(structure, recipe, samples, measure, levels, progress)
    nodes = {w.name: w.node.name or f"{w.node.op_type} {w.name}" for w in prunable_weights(structure)}
    return Scan(measured, dense, recipe.structure, table, skipped, nodes)


def _levels(recipe: Recipe, levels: Sequence[float] | None) -> tuple[float, ...]:
    if levels is None:
        return UNIT_LEVELS if recipe.parts.units else LEVELS
    if not levels or not all(0 < level < 1 for level in levels):
        raise RecipeError(f"--levels: shares between 0 and 1, such as 0.3,0.5,0.8 (not {', '.join(map(str, levels))})")
    return tuple(sorted(set(levels)))


def _scanned(
    structure: Structure,
    recipe: Recipe,
    samples: Calibration,
    measure: Measure,
    levels: tuple[float, ...],
    progress: Callable[[str], None] | None,
) -> tuple[Sensitivity, dict[str, str]]:
    """Scan what the recipe lets go; what is left out, with the reason."""
    recipe = settled(recipe, calibrated=False)  # units are zeroed and nothing makes up for them
    criterion = find_criterion(recipe.criterion).on(Evidence.of(structure, samples, recipe.seed))
    weights = eligible_weights(structure, recipe)
    if recipe.parts.units:
        groups = eligible_groups(structure, weights, recipe)
        scored = score_units(structure, weights, groups, criterion, recipe.seed) if groups else None
        skipped = {} if scored is None else {group.name: reason for group, reason in scored.unscored.items()}
        groups = [group for group in groups if group.name not in skipped]
        if not groups or scored is None:
            raise NothingToPrune("there are no units to scan; onnxprune inspect tells why")
        counted = prunable_weights(structure)
        return scan_units(structure, counted, groups, scored.values, measure, levels=levels, progress=progress), skipped
    main = main_constants(structure.model)
    skipped = {weight.name: "it lies in a subgraph" for weight in weights if weight.name not in main}
    weights = [weight for weight in weights if weight.name not in skipped]
    if not weights:
        raise NothingToPrune("there are no weights to scan; onnxprune inspect tells why")
    return scan(weights, criterion, measure, levels=levels, seed=recipe.seed, progress=progress), skipped


class _Metric:
    """A metric on labelled inputs, of a model with other numbers in some constants."""

    def __init__(self, model: ir.Model, eval_data: Data, name: str | None) -> None:
        self._model = model
        self._meter, self.dense = start_meter(model, runtime.make_session(model), eval_data, name)
        self.name = self._meter.metric.name

    def __call__(self, changed: Mapping[str, Array]) -> float:
        model = self._model.clone()
        replace_constants(model, changed)
        return self._meter.read(model, runtime.make_session(model))
