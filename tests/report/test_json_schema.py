"""The documented schema is what ``--json`` prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from onnxprune.cli import main
from onnxprune.recipe import requirements
from onnxprune.report.json_schema import PruneOutput, schema

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ROOT / "models" / "digits_mlp.onnx"
DATA = ["--eval-data", str(TRAINED.with_suffix(".npz"))]


@pytest.mark.parametrize(
    "flags",
    [[], ["--structure", "channels", *DATA], ["--quantize", "int8", "--pack", *DATA], ["--sparse-initializers"]],
    ids=" ".join,
)
def test_every_answer_follows_the_schema(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(TRAINED), "-s", "0.5", "-o", str(tmp_path / "o.onnx"), "--json", *flags])
    assert left.value.code == 0
    text = capsys.readouterr().out
    answer = PruneOutput.model_validate_json(text)
    assert answer.sha256 and answer.recipe.sparsity == 0.5
    with pytest.raises(ValidationError):
        PruneOutput.model_validate({**json.loads(text), "unknown": 1})


def test_the_page_names_every_key_and_every_limit() -> None:
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    assert set(schema()["properties"]) <= named | {"format"}
    assert set(requirements.FIGURES) <= named


def test_the_schema_is_json() -> None:
    assert json.loads(json.dumps(schema()))["properties"]["format"]["const"] == "onnxprune-prune/1"
