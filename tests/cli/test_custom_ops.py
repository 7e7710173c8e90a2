"""Operators of a library: --custom-ops loads it in every session; without it, --no-verify proves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import refused, run
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cli.flags import SETTINGS
from onnxprune.recipe.file import read


@pytest.fixture
def library() -> str:
    """A real library of custom operators."""
    extensions = pytest.importorskip("onnxruntime_extensions", reason="onnxruntime-extensions is not installed")
    return str(extensions.get_library_path())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two layers with an operator between them that ONNX Runtime does not have: NegPos splits by sign."""
    rng = np.random.default_rng(0)
    weights = {"a": (8, 32), "b": (32, 16), "c": (16, 4)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["m"]),
        helper.make_node("NegPos", ["m"], ["negative", "positive"], domain="ai.onnx.contrib"),
        helper.make_node("MatMul", ["positive", "c"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [1, 8])], [info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


CHANNELS = ("--structure", "channels", "--sparsity", "0.3", "--round-to", "none")


def test_without_the_library_the_operator_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, tmp_path, model, *CHANNELS)
    assert all(word in sentence for word in ("NegPos", "ai.onnx.contrib", "--custom-ops", "--no-verify"))


def test_every_command_loads_the_library(model: Path, tmp_path: Path, library: str) -> None:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32))
    smaller, record, ops = tmp_path / "s.onnx", tmp_path / "r.json", ("--custom-ops", library)
    assert run(model, *CHANNELS, *ops, "-o", smaller, "--record", record, "--report", tmp_path / "r.html") == 0
    assert json.loads(record.read_text())["figures"]["proved"] is True
    assert run("verify", model, smaller, "--record", record, *ops) == 0
    assert run("compare", model, smaller, *ops) == 0
    assert run("inspect", model, *ops) == 0
    assert run("sensitivity", model, "--calibration", tmp_path / "c.npz", *ops) == 0
    settings = ("--sparsity", "0.5", "--quantize", "int8", "--calibration", tmp_path / "c.npz")
    assert run(model, *settings, *ops, "-o", tmp_path / "q.onnx") == 0


def test_no_verify_writes_and_says_everywhere_that_nothing_was_proved(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, report = tmp_path / "r.json", tmp_path / "r.html"
    assert run(model, *CHANNELS, "--no-verify", "--pack", "auto", "--record", record, "--report", report, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["proved"] is False and "--no-verify" in told["unproved"]
    assert json.loads(record.read_text())["figures"]["proved"] is False
    assert "nothing was proved" in report.read_text()
    assert (tmp_path / "m.pruned.onnx").exists()
    assert run(model, *CHANNELS, "--no-verify", "--force") == 0
    assert "nothing was proved" in " ".join(capsys.readouterr().out.split())


def test_limits_on_measured_figures_need_verification(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--no-verify" in refused(capsys, tmp_path, model, *CHANNELS, "--no-verify", "--require", "size<=0.9")


def test_what_is_no_library_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.so").write_text("no library")
    assert "text.so" in refused(capsys, tmp_path, model, *CHANNELS, "--custom-ops", tmp_path / "text.so")
    assert "there is no file" in refused(capsys, tmp_path, model, *CHANNELS, "--custom-ops", tmp_path / "none.so")


def test_libraries_of_a_recipe_file_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("sparsity = 0.5\ncustom_ops = ['a.so', 'b.so']\n")
    fields = {setting.parameter: setting.field for setting in SETTINGS}
    settings = read(tmp_path / "r.toml", flags=fields, paths=["custom_ops"], lists=["custom_ops"]).settings
    assert settings["custom_ops"] == [str(tmp_path.resolve() / name) for name in ("a.so", "b.so")]
