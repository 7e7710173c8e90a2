"""What a run gives back: the pruned model and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune import model_io
from onnxprune.graph.tiles import Tile
from onnxprune.packing import PackReport
from onnxprune.passes.normalise import renamed_copies
from onnxprune.pipeline.clock import Clock
from onnxprune.pipeline.record import FileId, Record, RecordedTile
from onnxprune.pipeline.runtime_settings import Interface
from onnxprune.pipeline.search import Try
from onnxprune.pipeline.step import State
from onnxprune.pipeline.trace import Trace
from onnxprune.recipe.flag import flag_name
from onnxprune.recipe.recipe import Recipe
from onnxprune.runtime.in_openvino import EngineFigure
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.terms import Bools
from onnxprune.verification.notebook import in_notebook
from onnxprune.verification.reach import INEXACT
from onnxprune.verification.verdict import Verdict

RUINED = 0.5
"""From this change of the outputs, relative to their largest value, a person is warned where nothing made up for it."""

NOT_VERIFIED = "the model was written without verification (--no-verify): it was not run, and nothing was proved"

SLOWER, SHORTEST, LITTLE = 1.1, 0.05, 0.05
"""A latency ratio above the first is told (of runs of so many milliseconds), as are savings of less than the last."""


def measured_figures(result: Result) -> dict[str, float]:
    """What a run measured, by the names of `FIGURES`; a figure that was not measured is left out."""
    figures = {"sparsity": result.sparsity}
    verdict = result.verdict
    if verdict is None:
        return figures
    before, after = verdict.before, verdict.after
    if not math.isnan(verdict.output_change):
        figures["output_change"] = verdict.output_change
    figures["size"] = after.file_bytes / before.file_bytes
    if before.parameters:
        figures["parameters"] = after.parameters / before.parameters
    if before.macs and after.macs is not None:
        figures["macs"] = after.macs / before.macs
    if verdict.latency_ratio is not None:
        figures["latency"] = verdict.latency_ratio
    if verdict.metric is not None:
        figures["metric_drop"] = verdict.metric.drop
    return figures


@dataclass(frozen=True)
class Result:
    """A pruned model and what is known of it.

    Attributes:
        model: The pruned model.
        recipe: The settings of the run.
        sparsity: The share of prunable parameters that are zero or gone.
        prunable: The number of prunable parameters.
        gone: How many of them are zero or gone.
        kept: The kept indices, by constant and axis, of constants that were cut.
        renamed: Copies of constants that the output has, with the names of their sources.
        verdict: What was measured; None without verification.
        dead: How many dead units went beside what was asked for.
        notes: What the user should know: a sparsity that is not reached and why, dead units that had to stay.
        seconds: Time by stage.
        delivery: What was done to the pruned model before it is written: `model` is what came out.
        steps: Each step as plain data: the sparsity that it aimed at and reached, what recovery did to each layer, what
            a scan of sensitivity found.
        untouched: Weights, or groups of units, that the pattern or the criterion did not fit, with the reason.
        blocks: Residual blocks that went, by the names of their sums in the original.
        reach: How far the proof of each cut reaches, as plain data: see `verification.reach.Reach`.
        retraining: Each iteration of pruning and retraining as plain data: what it aimed at, reached, and its epochs.
        interface: What the caches among inputs and outputs kept, where the recipe narrows them.
        target: What a target asked for and what came out; None where the recipe has none.
        masks: Which numbers of weights stay, by their names, where layers are rewritten by it.
    """

    model: ir.Model
    recipe: Recipe
    sparsity: float
    prunable: int
    gone: int
    kept: Kept
    renamed: Mapping[str, str]
    verdict: Verdict | None
    dead: int = 0
    notes: tuple[str, ...] = ()
    source: FileId = field(default_factory=FileId)
    seconds: Mapping[str, float] = field(default_factory=dict)
    delivery: Delivery | None = None
    steps: tuple[Mapping[str, Any], ...] = ()
    untouched: Mapping[str, str] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    reach: tuple[Mapping[str, Any], ...] = ()
    retraining: tuple[Mapping[str, Any], ...] = ()
    target: Reached | None = None
    interface: Interface | None = None
    masks: Mapping[str, Bools] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """What came out, in a few words."""
        share = f"{self.sparsity:.1%} of the prunable weights are {self.recipe.parts.gone}"
        if self.verdict is None:
            return f"{share}; not proved: {NOT_VERIFIED}"
        return f"{self.verdict.headline}; {share}"

    def __repr__(self) -> str:
        return f"<Result: {self.headline}>"

    def _repr_html_(self) -> str:
        if self.verdict is None:
            return in_notebook(self.headline, notes=self.notes)
        rows = [(row.name, row.before, row.after, "" if row.ratio is None else row.ratio) for row in self.verdict.rows]
        return in_notebook(self.headline, ("", "before", "after", "after / before"), rows, self.notes)

    @property
    def recovered(self) -> Mapping[str, Any] | None:
        """What recovery did after the last step; None where nothing was recovered."""
        return self.steps[-1].get("recovery") if self.steps else None

    @property
    def faster(self) -> bool:
        """Whether the graph computes less than that of the original: units went, or layers are written in tiles."""
        tiles = {} if self.delivery is None else self.delivery.tiles
        untiled = {} if self.delivery is None else self.delivery.untiled
        return self.recipe.parts.removes or any(name not in untiled for name in tiles)

    @property
    def figures(self) -> dict[str, Any]:
        """The figures as plain data."""
        figures: dict[str, Any] = {
            "sparsity": self.sparsity,
            "prunable_parameters": self.prunable,
            "gone_parameters": self.gone,
            "dead_units": self.dead,
            "notes": list(self.notes),
            "steps": list(self.steps),
            "untouched": dict(self.untouched),
            "blocks": list(self.blocks),
            "reach": list(self.reach),
        }
        if self.retraining:
            figures["retraining"] = list(self.retraining)
        if self.target is not None:
            figures["target"] = self.target.as_dict()
        if self.interface is not None:
            kept = {
                name: {str(a): i.tolist() for a, i in axes.items()}
                for name, axes in self.interface.narrowed.kept.items()
            }
            figures["interface"] = kept
        measured: dict[str, Any] = {"proved": False, "unproved": NOT_VERIFIED}
        if self.verdict is not None:
            measured = {"proved": not self.verdict.unproved, **self.verdict.as_dict()}
        return figures | measured | ({} if self.delivery is None else self.delivery.as_dict())

    def record(self, output: FileId | None = None) -> Record:
        """Return the record of the run."""
        return Record(
            source=self.source,
            output=output or FileId(),
            recipe=self.recipe.model_dump(mode="json"),
            kept={n: {str(a): i.tolist() for a, i in axes.items()} for n, axes in self.kept.items()},
            renamed=dict(self.renamed),
            blocks=list(self.blocks),
            tiles={} if self.delivery is None else {n: _plain_tiles(t) for n, t in self.delivery.tiles.items()},
            figures=self.figures,
        )


def _plain_tiles(tiles: Sequence[Tile]) -> list[RecordedTile]:
    return [RecordedTile(outputs=tile.outputs.tolist(), inputs=tile.inputs.tolist()) for tile in tiles]


def result_of(state: State, recipe: Recipe, prunable: int, gone: int, verdict: Verdict | None, clock: Clock) -> Result:
    """Return the result of a run.

    Args:
        state: The state after the last step.
        recipe: The recipe of the run.
        prunable: How many parameters could go.
        gone: How many of them are zero or gone.
        verdict: What was measured.
        clock: How long the stages took.
    """
    model, trace = state.model, state.trace
    copies = renamed_copies(model)
    names = {**trace.names, **copies}
    written = {str(value.name) for value in model_io.all_initializers(model)}
    kept = {name: axes for name, axes in trace.kept.items() if name in written or name not in names}
    return Result(
        model=model,
        recipe=recipe,
        sparsity=gone / prunable,
        prunable=prunable,
        gone=gone,
        kept=kept,
        renamed={copy: source for copy, source in names.items() if copy in kept or copy in copies},
        verdict=verdict,
        dead=trace.dead,
        notes=(*trace.notes(recipe, gone / prunable), *_inexact(trace), *_ruined(recipe, state, verdict)),
        seconds=clock.seconds,
        steps=trace.steps,
        untouched=trace.untouched,
        blocks=trace.blocks,
        reach=trace.reach,
        retraining=tuple(asdict(iteration) for iteration in state.history),
        masks=state.masks if recipe.parts.rewritten else {},
    )


def _inexact(trace: Trace) -> tuple[str, ...]:
    return (INEXACT,) if any(reach["inexact"] for reach in trace.reach) else ()


def _ruined(recipe: Recipe, state: State, verdict: Verdict | None) -> tuple[str, ...]:
    """Warn of outputs that changed beyond recognition where nothing made up for what went."""
    made_up = recipe.retrain is not None or any("recovery" in step for step in state.trace.steps)
    if verdict is None or made_up or not verdict.output_change >= RUINED:
        return ()
    return (
        f"outputs changed by {verdict.output_change:.2g} of their largest value, so expect the model to be of little "
        "use as it is: give --calibration with some of its inputs (no labels needed), where there are none "
        "--calibration synthetic, or --retrain with --data",
    )


def shortcomings(result: Result) -> tuple[str, ...]:
    """Say in plain words where a result is slower or no smaller, or where what it shows is not its own doing."""
    verdict, notes = result.verdict, list[str]()
    if verdict is None:
        return ()
    before, after, figures = verdict.before, verdict.after, measured_figures(result)
    ratio = figures.get("latency", 0.0)
    if verdict.latency is not None and ratio > SLOWER and verdict.latency.before_ms > SHORTEST:
        form = result.recipe.quantize
        what = f"the {form} model" if form != "no" else "the result"
        notes.append(f"{what} runs slower here than the original: {ratio:.2f} of its latency")
    if after.file_bytes > before.file_bytes:
        notes.append(f"the file is no smaller: it grew from {before.file_bytes:,} to {after.file_bytes:,} bytes")
    saved = 1 - figures.get("macs", 0.0)
    if result.recipe.parts.removes and result.gone and saved < LITTLE and not before.uncounted:
        notes.append(f"what went saves only {saved:.1%} of the multiply-adds")
    packing = None if result.delivery is None else result.delivery.packing
    if packing is not None and not packing.packed:
        notes.append(f"nothing was packed: {packing.obstacle or 'no tensor has zeros enough'}")
    zeros = before.parameters - before.nonzero_parameters
    if not result.recipe.parts.removes and zeros > LITTLE * max(result.prunable, 1):
        notes.append(f"{zeros:,} numbers of the original were zero before this run")
    return tuple(notes)


@dataclass(frozen=True)
class EngineUse:
    """What an engine with kernels for zeros makes of a model.

    Attributes:
        engine: Its name.
        used: The weights whose zeros it has kernels for, by the names of the written file.
        unused: All other weights, with the reason.
        rate: The least share of zeros of the former, rounded down to hundredths.
        measured: What it did with the model; None where nothing was measured.
    """

    engine: str
    used: tuple[str, ...]
    unused: Mapping[str, str]
    rate: float
    measured: EngineFigure | None = None


@dataclass(frozen=True)
class Delivery:
    """What was done to the pruned model before it is written.

    Attributes:
        plain: The pruned model itself, with dense float weights.
        quantize: The form it was quantised to, "no" where it was not.
        quantised_from: What was measured before that; None where nothing was.
        packing: What packing did to each tensor; None where it was not asked for.
        sparse_tensors: How many tensors are written as `sparse_initializer`.
        tiles: The tiles of each weight that has some, by its name.
        untiled: Why the layers of some of these weights were not rewritten.
        engine: What the recipe's engine makes of it; None where it names none.
    """

    plain: ir.Model
    quantize: str = "no"
    quantised_from: Verdict | None = None
    packing: PackReport | None = None
    sparse_tensors: int = 0
    tiles: Mapping[str, Sequence[Tile]] = field(default_factory=dict)
    untiled: Mapping[str, str] = field(default_factory=dict)
    engine: EngineUse | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: what was measured before quantising, what packing chose for each tensor."""
        plain: dict[str, Any] = {}
        if self.quantised_from is not None:
            plain["before_quantising"] = self.quantised_from.as_dict()
        if self.tiles:
            plain["tiles"] = {"rewritten": [n for n in self.tiles if n not in self.untiled], "not": dict(self.untiled)}
        if self.sparse_tensors:
            plain["sparse_initializers"] = self.sparse_tensors
        if self.engine is not None:
            plain["engine"] = asdict(self.engine)
        if self.packing is not None:
            tensors = [asdict(t) for t in self.packing.tensors]
            packing = {"mode": self.packing.mode, "values": self.packing.values, "ratio": self.packing.ratio}
            plain["packing"] = packing | {"tensors": tensors}
        return plain


_OFF = 0.1  # a latency further than this from its target, relative to it, is told as missed


@dataclass(frozen=True)
class Reached:
    """What a target asked for and what came out.

    Attributes:
        target: The field of the recipe.
        wanted: Its value.
        reached: The same of the result; as measured in the search, where the result was not measured.
        sparsity: The sparsity that was asked for to get it; where units save a share of a cost, what came out.
        tries: All runs of the search.
    """

    target: str
    wanted: float
    reached: float
    sparsity: float
    tries: tuple[Try, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @property
    def note(self) -> str:
        """One sentence for the user."""
        times = "" if self.target == "max_drop" else "x"  # a share of what it was
        flag = f"{flag_name(Recipe, self.target)} {self.wanted:g}{times}"
        tries = f", in {len(self.tries)} tries" if self.tries else ", as it was found before the run was interrupted"
        text = f"{flag}: reached {self.reached:.3g}{times} at a sparsity of {self.sparsity:.1%}{tries}"
        missed = self.target == "target_latency" and abs(self.reached / self.wanted - 1) > _OFF
        return text + ("; the steps that whole units go in allow nothing nearer" if missed else "")
