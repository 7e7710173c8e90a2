"""The data of a retraining run: what it trains on, what picks the best state, and what its metric is measured on.

The share that picks the best state is held out of the training data. The metric before and after is measured in ONNX
Runtime, on ``--eval-data`` where they are given and on the held-out share otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data.metrics import METRICS
from onnxprune.data.readers import AnyData, Data, open_data
from onnxprune.data.sources import Subset, split
from onnxprune.recipe.training import DataSettings, TrainSettings


@dataclass(frozen=True)
class Sets:
    """The data of a run.

    Attributes:
        train: What it trains on.
        validation: What picks the best state; None where nothing is held out.
        evaluation: What the metric before and after is measured on; None where there is nothing.
        note: What the user should know about the evaluation, or "".
    """

    train: Data
    validation: Data | None
    evaluation: Data | None
    note: str = ""


def open_sets(
    model: ir.Model, data: AnyData, eval_data: AnyData | None, settings: TrainSettings, reading: DataSettings
) -> Sets:
    """Open the data and hold out the share that picks the best state.

    Raises:
        DataError: They cannot be read, do not fit the model, or are too few to hold out a share.
    """
    whole = open_data(model, data, of_training(reading))
    train, held = split(whole.source, settings.validation, settings.seed)
    labels = whole.boxes.rows(held.chosen) if whole.boxes is not None and isinstance(held, Subset) else None
    validation = None if held is None else replace(whole, source=held, scores=None, boxes=labels)
    sets = Sets(replace(whole, source=train, scores=None, boxes=None), validation, validation)
    if eval_data is not None:
        return Sets(sets.train, validation, open_data(model, eval_data, reading))
    if validation is None or held is None:
        why = "nothing is held out" if settings.validation == 0 else "they are read from front to back"
        return Sets(sets.train, None, None, f"no metric was measured: of the training data {why}; give --eval-data")
    note = (
        f"the metric was measured on the {held.count} samples of --data that were held out of the training and picked "
        "its best state: --eval-data gives a figure that nothing was picked by"
    )
    return Sets(sets.train, validation, validation, note)


def of_training(reading: DataSettings) -> DataSettings:
    """How data to train or to calibrate on are read: of data sets in parts, the part for training."""
    return reading if reading.part is not None else reading.model_copy(update={"part": "train"})


def identity(data: AnyData | None) -> str | None:
    """What tells these data from others: the content of files and arrays, the names and sizes of a folder's files."""
    if data is None or isinstance(data, Data):
        return None if data is None else "data that are open"
    if isinstance(data, Mapping):
        return "arrays: " + ", ".join(f"{n}{list(np.shape(a))} {_of_array(a)}" for n, a in data.items())
    path = Path(data)
    if path.is_dir():
        files = sorted((str(f.relative_to(path)), f.stat().st_size) for f in path.rglob("*") if f.is_file())
        return f"folder {hashlib.sha256(repr(files).encode()).hexdigest()}"
    return f"sha256 {_sha256(path)}" if path.is_file() else str(data)


def _of_array(array: Any) -> str:
    content = np.ascontiguousarray(array)
    plain = content.tobytes() if content.dtype != object else repr(content.tolist()).encode()
    return hashlib.sha256(f"{content.dtype}".encode() + plain).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def training_metric(settings: TrainSettings, sets: Sets) -> TrainSettings:
    """The settings of the training, where the metric asked for needs targets that only the evaluation data have."""
    if settings.metric is None or sets.train.outputs or sets.evaluation is None or not sets.evaluation.outputs:
        return settings
    needs = METRICS.find(settings.metric).needs
    return settings if needs == "original" else settings.model_copy(update={"metric": None})
