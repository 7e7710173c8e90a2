"""The folder of a run: what stands in it is the run's own, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.errors import RecipeError
from onnxprune.pipeline.run_folder import begin, forget


@pytest.mark.parametrize("change", [("0.5", "0.7"), ("recipe", "recipf"), ("{", ""), ('"sha256"', '"sha257"')])
def test_a_damaged_run_is_not_gone_on_with(tmp_path: Path, change: tuple[str, str]) -> None:
    run = {"recipe": {"sparsity": 0.5}, "model": "abc"}
    begin(tmp_path / "state", run, resume=False)
    begin(tmp_path / "state", run, resume=True)
    path = tmp_path / "state" / "run.json"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(RecipeError, match=r"run\.json' (is damaged|cannot be read)"):
        begin(tmp_path / "state", run, resume=True)


def test_leftovers_of_a_killed_run_do_not_keep_the_folder(tmp_path: Path) -> None:
    begin(tmp_path / "state", {"model": "abc"}, resume=False)
    (tmp_path / "state" / ".state.safetensors.0123456789abcdef.onnxprune-tmp").write_bytes(b"half")
    forget(tmp_path / "state")
    assert not (tmp_path / "state").exists()
