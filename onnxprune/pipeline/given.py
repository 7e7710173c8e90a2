"""What a run is given beside the model and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune.data.calibration import AnyArrays, Calibration
from onnxprune.recipe.recipe import Recipe
from onnxprune.scoring.remembered import Memory
from onnxprune.verify.verdict import Verdict, verify

AnyModel = str | Path | onnx.ModelProto | ir.Model


AnyData = str | Path | Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Given:
    """What a run is given beside model and recipe; see `prune`.

    `samples` are those of `calibration`, read; `memory` is shared by the runs of a search, which begin alike.
    """

    data: AnyData | None
    eval_data: AnyData | None
    metric: str | None
    calibration: AnyArrays | None
    samples: Calibration | None
    checkpoint: Path | None
    resume: bool
    verification: bool
    latency: bool
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True)
class Measure:
    """How models are compared with the original in this run."""

    original: ir.Model
    recipe: Recipe
    latency: bool
    eval_data: str | Path | None
    metric: str | None

    def again(self, model: ir.Model, first: Verdict | None) -> Verdict | None:
        """Verify a later form of the model; the proof that removed == masked is that of the first."""
        if first is None:
            return None
        return verify(
            self.original,
            model,
            removed_vs_masked=first.removed_vs_masked,
            seed=self.recipe.seed,
            latency=self.latency,
            eval_data=self.eval_data,
            metric=self.metric,
        )


@dataclass(frozen=True)
class Wishes:
    """What a run is given beside model and recipe; see `pipeline.prune`."""

    data: AnyData
    eval_data: AnyData | None = None
    metric: str | None = None
    calibration: Calibration | None = None
    checkpoint: Path | None = None
    resume: bool = False
    verification: bool = True
    latency: bool = True
