"""Methods of pruning from the command line: every setting as a flag, in a recipe file, and in the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import refused, run
from onnx import numpy_helper
from small_models import random, two_layers

from onnxprune import model_io
from onnxprune.pipeline.methods import catalogue
from onnxprune.recovery import METHODS
from onnxprune.report.json_schema import PruneOutput
from onnxprune.scoring import criteria


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and calibration data with and without labels."""
    model_io.save(two_layers(64), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=random(96, 8), label=np.arange(96) % 4)
    np.savez(tmp_path / "inputs.npz", x=random(96, 8))
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    text = capsys.readouterr().out
    PruneOutput.model_validate_json(text)
    return dict(json.loads(text))


@pytest.mark.parametrize(
    "flags",
    [
        ("--structure", "channels+weights", "-s", 0.6, "--unit-share", 0.3, "--criterion", "taylor", "--recover", "no"),
        ("--structure", "channels", "-s", 0.5, "--iterations", 2, "--schedule", "linear", "--initial-sparsity", 0.1),
        ("--structure", "2:4", "--ends", "prune", "--recover", "bias,least-squares", "--calibration-samples", 64),
        ("-s", 0.5, "--allocation", "sensitivity", "--criterion", "wanda", "--remove-dead"),
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_a_saved_recipe_gives_the_same_bytes_and_record(
    flags: tuple[object, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, record, recipe = folder / "out.onnx", folder / "record.json", folder / "r.toml"
    given = ("--calibration", folder / "data.npz", "--record", record, "--save-recipe", recipe)
    first = answer(capsys, folder / "net.onnx", "-o", out, *flags, *given)
    files = out.read_bytes(), record.read_bytes()
    out.unlink()
    again = answer(capsys, "run", recipe, "--force")
    assert (out.read_bytes(), record.read_bytes()) == files or first["latency_ratio"] != again["latency_ratio"]
    assert out.read_bytes() == files[0] and again["recipe"] == first["recipe"] and again["steps"] == first["steps"]
    assert run("verify", folder / "net.onnx", out, "--record", record) == 0


def test_what_recovery_and_a_scan_did_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "-s",
        0.5,
        "--structure",
        "channels",
        "--allocation",
        "sensitivity",
        "--calibration",
        folder / "inputs.npz",
    )
    found = answer(capsys, folder / "net.onnx", "--dry-run", *flags)
    (step,) = found["steps"]
    assert step["recovery"]["after"] < step["recovery"]["before"] and step["recovery"]["samples"] == 96
    assert step["sensitivity"][0]["parameters"] > 0
    assert run(folder / "net.onnx", "--dry-run", *flags) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "recovery (least-squares; 96 calibration inputs) changed" in said
    assert "before recovery, masks held exactly" in said


def test_a_layer_that_stays_dense_is_named_on_the_console(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_io.save(two_layers(62), folder / "odd.onnx")
    found = answer(capsys, folder / "odd.onnx", "--dry-run", "--structure", "2:4", "--ends", "prune")
    assert found["untouched"] == {"w2": "its reduction axis has 62 entries, no multiple of 4"}
    assert run(folder / "odd.onnx", "--dry-run", "--structure", "2:4", "--ends", "prune") == 0
    assert "w2: its reduction axis has 62 entries" in " ".join(capsys.readouterr().out.split())


def test_with_packing_quantising_and_limits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--calibration", folder / "inputs.npz", "--force")
    packed = answer(
        capsys, folder / "net.onnx", "-s", 0.8, "--iterations", 2, "--pack", "--require", "sparsity>=0.79", *data
    )
    assert packed["packing"] and len(packed["steps"]) == 2
    int8 = answer(capsys, folder / "net.onnx", "--structure", "channels+2:4", "-s", 0.7, "--quantize", "int8", *data)
    assert int8["before_quantising"] and int8["steps"][0]["recovery"]["after"] < 1
    zeros = [t for t in onnx.load(folder / "net.pruned.onnx").graph.initializer if "w1" in t.name and len(t.dims) == 2]
    assert any(np.mean(numpy_helper.to_array(t) == 0) >= 0.5 for t in zeros)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-s", 0.5, "--structure", "cubes"), "--structure: there is no structure 'cubes'"),
        (("-s", 0.6, "--structure", "2:4"), "--sparsity: 2:4 makes it 0.5: leave it out"),
        (("-s", 0.5, "--criterion", "wanda"), "--criterion wanda needs inputs to look at: give --calibration"),
        (("-s", 0.5, "--criterion", "snip", "--calibration", "inputs.npz"), "--calibration has no array 'label'"),
        (("-s", 0.5, "--criterion", "apoz", "--calibration", "inputs.npz"), "scores whole units"),
        (("-s", 0.5, "--allocation", "sensitivity"), "--allocation sensitivity scans"),
        (("-s", 0.5, "--allocation", "erk", "--structure", "channels"), "--allocation: erk is for single weights"),
        (("-s", 0.5, "--recover", "least-squares"), "--recover least-squares needs inputs"),
        (("-s", 0.5, "--recover", "magic"), "--recover: there is no recovery method 'magic'"),
        (("-s", 0.5, "--calibration", "nowhere.npz"), "there is no such file"),
        (("-s", 0.5, "--unit-share", 0.3), "--unit-share"),
        (("-s", 0.5, "--kinds", "heads"), "--kinds: about whole units"),
        (("-s", 0.5, "--iterations", 0), "--iterations"),
        (("-s", 0.5, "--iterations", 2, "--initial-sparsity", 0.7), "--initial-sparsity is more than --sparsity"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_contradicts_is_refused_in_one_sentence(
    flags: tuple[object, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = [folder / flag if flag == "inputs.npz" else flag for flag in flags]
    assert message in refused(capsys, folder, folder / "net.onnx", *placed)


OWN = """
import numpy as np

def root(weight, context):
    "|w|^(1/2)"
    return np.sqrt(np.abs(weight.numbers()))

def same(weights, sparsity, look=None):
    return {weight.value: sparsity for weight in weights}

def as_it_is(layer, folds):
    from onnxprune.recovery.fitting import Proposal
    return Proposal(layer.start, 1.0, 1.0)

def at_once(step, steps, initial, final):
    return final

def first_class(outputs, targets):
    return float((outputs[0].argmax(1) == 0).mean())
"""


def test_methods_of_a_users_own_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own_methods.py").write_text(OWN)
    monkeypatch.chdir(folder)
    told = answer(
        capsys, "net.onnx", "-s", 0.5, "--dry-run", "--calibration", "data.npz", "--eval-data", "data.npz",
        *(part for flag, name in [("criterion", "root"), ("allocation", "same"), ("recover", "as_it_is"),
                                  ("schedule", "at_once"), ("metric", "first_class")]
          for part in (f"--{flag}", f"own_methods:{name}")),
    )  # fmt: skip
    assert abs(told["sparsity"] - 0.5) < 0.01 and told["metric"]["name"] == "own_methods:first_class"
    assert [step["applied"] for step in told["steps"][0]["recovery"]["steps"]].count(True) == 0


def test_the_list_of_methods_is_that_of_the_registries(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", "--json") == 0
    entries = json.loads(capsys.readouterr().out)["settings"]
    names = {(entry["setting"], entry["name"]) for entry in entries}
    assert {("criterion", name) for name in criteria()} <= names
    assert {("recover", name) for name in METHODS} <= names
    assert {s for s, _ in names} == {"structure", "criterion", "allocation", "schedule", "recover", "metric"}
    assert all(entry["about"] for entry in entries) and len(entries) == len(catalogue())
    assert run("methods") == 0
    assert "--criterion" in capsys.readouterr().out
