"""What a run is given beside the model and the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxprune.data.calibration import Calibration
from onnxprune.data.readers import AnyData
from onnxprune.scoring.cache import ScoreCache

AnyModel = str | Path | onnx.ModelProto | ir.Model
"""A model, as `prune` takes it."""


@dataclass(frozen=True)
class RunInputs:
    """What a run is given beside the model and the recipe.

    Attributes:
        data: What it trains on.
        eval_data: What the metric is measured on.
        metric: The name of the metric; None for the one that fits the data.
        calibration: Inputs, with labels where there are labels, as they were given.
        samples: The samples of `calibration`, once they are read.
        checkpoint: The folder that the state of the run is kept in.
        resume: Whether to go on with the run that the folder holds.
        verification: Whether the result is measured in ONNX Runtime.
        latency: Whether the latency ratio is measured as well.
        inputs: Inputs that the model runs with, which take the place of made-up ones.
        cache: Scores of the original, which the runs of a search share: they all begin with it.
    """

    data: AnyData | None = None
    eval_data: AnyData | None = None
    metric: str | None = None
    calibration: AnyData | None = None
    samples: Calibration | None = None
    checkpoint: Path | None = None
    resume: bool = False
    verification: bool = True
    latency: bool = True
    cache: ScoreCache = field(default_factory=ScoreCache)
    inputs: AnyData | None = None
