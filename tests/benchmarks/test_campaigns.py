"""The campaigns judge by themselves: a right result holds, one that was tampered with does not."""

from __future__ import annotations

from pathlib import Path

import damaged_files
import kills
import numpy as np
import onnx
import pytest
import random_graphs
from onnx import numpy_helper

PLAN = random_graphs.Plan(
    5, "sequence", 17, False, ((13, 0, 0), (0, 0, 0)), ("--structure", "channels", "--sparsity", "0.5"), False
)


def test_a_right_result_holds_and_another_weight_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome, record, model = random_graphs.one(PLAN, tmp_path)
    assert outcome == "removed equals masked" and record["kept"]
    written = onnx.load(tmp_path / "out.onnx")
    tensor = next(t for t in written.graph.initializer if len(t.dims) == 2)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    onnx.save(written, tmp_path / "out.onnx")
    with pytest.raises(AssertionError, match="removed differs from masked"):
        random_graphs.judge(PLAN, model, tmp_path / "out.onnx", record)


def test_a_graph_follows_from_its_number() -> None:
    for number in range(20):
        plan = random_graphs.plan_of(number, 23)
        assert plan == random_graphs.plan_of(number, 23)
        assert random_graphs.model_of(plan) == random_graphs.model_of(plan)


@pytest.mark.parametrize("kind", damaged_files.KINDS)
def test_damage_changes_a_file_and_follows_from_the_seed(kind: str) -> None:
    content = bytes(range(256)) * 20
    made = [damaged_files.damaged(content, kind, np.random.default_rng(seed)) for seed in range(8)]
    assert made == [damaged_files.damaged(content, kind, np.random.default_rng(seed)) for seed in range(8)]
    assert any(other != content for other in made)


def test_outputs_that_do_not_belong_together_are_seen(tmp_path: Path) -> None:
    kills.make_inputs(tmp_path, kills.Kind(()))
    inputs = kills.hashes(tmp_path)
    (tmp_path / "out.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    assert "only out.onnx" in kills.problem(tmp_path, {}, inputs)
    for name in kills.OUTPUTS[1:]:
        (tmp_path / name).write_text("</html>")
    (tmp_path / "record.json").write_text('{"output": {"sha256": "0"}}')
    assert "of another model" in kills.problem(tmp_path, {}, inputs)
    (tmp_path / "data.npz").write_bytes(b"")
    assert kills.problem(tmp_path, {}, inputs) == "an input was changed"
