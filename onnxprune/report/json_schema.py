"""What ``--json`` of a pruning run prints, as a versioned schema: ``python -m onnxprune.report.json_schema``.

Within a version, keys may be added but none goes and none changes its meaning; other commands carry their version in
``format`` in the same way.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onnxprune.graph.size import Figures
from onnxprune.packing import TensorReport
from onnxprune.pipeline.result import EngineUse, Reached
from onnxprune.recipe.recipe import Recipe
from onnxprune.runtime.latency import LatencyFigure
from onnxprune.verification.evaluate import MeasuredMetric
from onnxprune.verification.reach import Reach
from onnxprune.verification.verdict import Verdict

FORMAT = "onnxprune-prune/1"


class Packing(BaseModel):
    """What --pack did."""

    model_config = ConfigDict(extra="forbid")

    mode: str = Field(description="the form asked for")
    values: str = Field(description="what packed weights keep of their values")
    ratio: float = Field(description="bytes of all tensors, after / before")
    tensors: list[TensorReport]


class PruneOutput(BaseModel):
    """The whole answer. Figures that were not measured are null or left out."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["onnxprune-prune/1"] = Field(description="name and version of this layout")
    model: str = Field(description="the model that was pruned")
    output: str | None = Field(description="the file that was written; null after a dry run or a missed limit")
    missed: str | None = Field(None, description="why no model was written: the limit that was missed")
    sha256: str | None = Field(None, description="of the output, its external data included")
    recipe: Recipe = Field(description="all settings, defaults included")
    sparsity: float = Field(description="share of prunable parameters that are zero or gone")
    prunable_parameters: int
    gone_parameters: int
    dead_units: int = Field(description="units that went beside what was asked for")
    notes: list[str] = Field(description="what the user should know, as sentences")
    steps: list[dict[str, Any]] = Field(
        [],
        description="each step of pruning: share wanted (of the cost where a budget is divided among units, else of "
        "the parameters), sparsity reached, what recovery did, what a scan found",
    )
    untouched: dict[str, str] = Field(
        {}, description="weights or groups of units that the pattern or the criterion does not fit, with the reason"
    )
    blocks: list[str] = Field([], description="residual blocks that went, by the names of the sums they were part of")
    reach: list[Reach] = Field([], description="how far the proof of each cut reaches")
    retraining: list[dict[str, Any]] = Field([], description="each iteration of pruning and retraining")
    target: Reached | None = Field(None, description="what a target asked for, what came out, and what was tried")
    before: Figures | None = Field(None, description="of the original; this and what follows is null with --no-verify")
    after: Figures | None = Field(None, description="of the written model")
    removed_vs_masked: float | None = Field(None, description="largest difference to the masked original, relative")
    proved: bool = Field(description="whether equal outputs of removed and masked prove that the cut is right")
    unproved: str = Field(description='why nothing was proved; "" where something was')
    output_change: float | None = Field(
        None,
        description="largest difference to the original, relative to the largest value of the part of an output that "
        "it lies in; of whole numbers the share; null where no output says anything",
    )
    output_changes: dict[str, float | None] = Field({}, description="the same of each output")
    latency_ratio: float | None = Field(None, description="after / before")
    latency: LatencyFigure | None = Field(None, description="milliseconds, and the machine that measured them")
    metric: MeasuredMetric | None = None
    batches: int = Field(0, description="sizes of the dynamic dimensions that were run")
    input_shapes: dict[str, tuple[int, ...]] = Field(
        {}, description="the inputs that multiply-adds and latency are of: one sample, where the model takes one"
    )
    before_quantising: Verdict | None = Field(None, description="the figures of the pruned model in float")
    packing: Packing | None = None
    engine: EngineUse | None = Field(None, description="which layers the engine has kernels for, and what it measured")
    sparse_initializers: int = Field(0, description="how many tensors are written as sparse_initializer")


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PruneOutput.model_json_schema()}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
