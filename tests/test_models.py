"""The trained models in models/: each runs, is as accurate as its README states, and was not tested on what it saw."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest

MODELS = Path(__file__).resolve().parent.parent / "models"
STATED = {
    name: (int(right), int(count))
    for name, right, count in re.findall(r"`(\w+\.onnx)`.*\((\d+)/(\d+)\)", (MODELS / "README.md").read_text())
}


def test_the_readme_states_every_model() -> None:
    assert set(STATED) == {path.name for path in MODELS.glob("*.onnx")} and len(STATED) >= 3


@pytest.mark.parametrize("name", STATED)
def test_accuracy_is_what_the_readme_states(name: str) -> None:
    accuracy = runpy.run_path(str(MODELS / "evaluate.py"))["accuracy"]
    right, count = accuracy(MODELS / name, (MODELS / name).with_suffix(".npz"))
    assert count == STATED[name][1]
    assert abs(right - STATED[name][0]) <= 1, "one sample of slack for another processor's rounding"


@pytest.mark.parametrize("name", STATED)
def test_the_file_is_small_valid_and_tells_nothing_of_its_builder(name: str) -> None:
    model = onnx.load(str(MODELS / name))
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch is dynamic"
    content = (MODELS / name).read_bytes()
    assert len(content) < 2**20
    assert b"/home/" not in content and b".py" not in content


@pytest.mark.parametrize("name", STATED)
def test_held_out_samples_are_not_in_the_training_split(name: str) -> None:
    training, held_out = (np.load(MODELS / file) for file in ("digits_train.npz", name.replace(".onnx", ".npz")))
    seen = {image.tobytes() for image in training["image"]}
    assert not any(image.tobytes() in seen for image in held_out["image"])
