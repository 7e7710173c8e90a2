"""The pass inside real workflows of Olive (pip install 'onnxprune[olive]')."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxprune import model_io
from onnxprune.data.readers import open_data
from onnxprune.verification.evaluate import evaluate

pytest.importorskip("olive", reason="olive-ai is not installed: pip install 'onnxprune[olive]'")

from olive.workflows import run

from onnxprune.integrations.olive import OnnxPrune, package_config
from onnxprune.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
RESNET, DATA = ROOT / "models" / "digits_resnet.onnx", ROOT / "models" / "digits_resnet.npz"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLIVE_DISABLE_TELEMETRY", "1")


def workflow(folder: Path, **prune: Any) -> dict[str, Any]:
    """The workflow of the documentation, with other settings of the pass and only that pass."""
    content = json.loads((ROOT / "docs" / "examples" / "olive" / "workflow.json").read_text())
    content["input_model"]["model_path"] = str(RESNET)
    content["passes"] = {"prune": {"type": "OnnxPrune", **prune}}
    return content | {"output_dir": str(folder / "out"), "cache_dir": str(folder / "cache")}


def test_every_field_of_the_recipe_is_a_parameter() -> None:
    assert set(Recipe.model_fields) <= set(OnnxPrune._default_config(None))


def test_the_workflow_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels go, training brings back what they cost, and Olive's own pass makes the weights float16."""
    pytest.importorskip("accelerate", reason="retraining is not installed: pip install 'onnxprune[retrain]'")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    output = run(ROOT / "docs" / "examples" / "olive" / "workflow.json", package_config=package_config())
    path = output.get_best_candidate().model_path
    model = onnx.load(path)
    assert {t.data_type for t in model.graph.initializer if len(t.dims) == 4} == {onnx.TensorProto.FLOAT16}
    assert len(model.SerializeToString()) < 0.35 * RESNET.stat().st_size
    written = model_io.load(path)
    assert evaluate(written, open_data(written, DATA), "accuracy")[1] > 0.9


def test_a_search_over_sparsities(tmp_path: Path) -> None:
    content = workflow(tmp_path, structure="channels", sparsity=[0.3, 0.6])
    content["search_strategy"] = {"execution_order": "joint", "sampler": "sequential"}
    content["evaluators"] = {
        "size": {
            "type": "OnnxEvaluator",
            "metrics": [{"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}],
        }
    }
    content["evaluator"] = "size"
    output = run(content, package_config=package_config())
    (model,) = Path(output.get_best_candidate().model_path).parent.glob("*.onnx")
    assert model.stat().st_size < 0.5 * RESNET.stat().st_size  # the one with 60 %


@pytest.mark.parametrize("wrong", [{"sparsity": 0.5, "require": ["size<=0.1"]}, {"structure": "channels"}])
def test_a_limit_that_is_missed_stops_the_workflow(tmp_path: Path, wrong: dict[str, Any]) -> None:
    output = run(workflow(tmp_path, **wrong), package_config=package_config())
    assert not output.has_output_model()


def test_external_data_stay_beside_the_model(tmp_path: Path) -> None:
    model_io.save(model_io.load(RESNET), tmp_path / "big.onnx", external=True)
    content = workflow(tmp_path, sparsity=0.5)
    content["input_model"]["model_path"] = str(tmp_path / "big.onnx")
    output = run(content, package_config=package_config())
    (model,) = Path(output.get_best_candidate().model_path).glob("*.onnx")
    weights = model_io.load(model).graph.initializers.values()
    assert sum(int((v.const_value.numpy() == 0).sum()) for v in weights) > 0.4 * sum(
        v.const_value.size for v in weights
    )
