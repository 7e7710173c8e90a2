"""A model that changes while it is in use is noticed: what is written never mixes two files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from model_io_models import mlp, stored, stored_external

import onnxprune
from onnxprune import model_io
from onnxprune.errors import ModelError


def rewrite(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if how == "in place":
        with path.open("r+b") as file:
            file.write(content)
    else:
        other = path.with_name("other")
        other.write_bytes(content)
        os.replace(other, path)


@pytest.mark.parametrize("how", ["in place", "replaced"])
@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
@pytest.mark.parametrize("stage", ["analyse", "deliver"])
def test_a_source_that_changes_during_the_run_is_refused(tmp_path: Path, how: str, name: str, stage: str) -> None:
    path = stored_external(tmp_path, mlp(width=64))

    def progress(now: str) -> None:
        if now == stage:
            rewrite(tmp_path / name, how)

    with pytest.raises(ModelError, match=f"{name}' was changed or replaced"):
        onnxprune.prune(path, sparsity=0.5, latency=False, progress=progress)


def test_data_that_change_before_the_result_is_saved_are_noticed(tmp_path: Path) -> None:
    result = onnxprune.prune(stored_external(tmp_path, mlp(width=64)), sparsity=0.5, latency=False)
    rewrite(tmp_path / "weights.bin", "replaced")
    with pytest.raises(ModelError, match="was changed or replaced"):
        onnxprune.save(result, tmp_path / "out.onnx", record=tmp_path / "record.json")
    assert not (tmp_path / "out.onnx").exists() and not (tmp_path / "record.json").exists()


def test_a_model_whose_weights_were_read_may_go_before_it_is_saved(tmp_path: Path) -> None:
    path = stored(tmp_path, mlp(width=64))
    result = onnxprune.prune(path, sparsity=0.5, latency=False)
    read = model_io.sha256(path)
    path.unlink()
    onnxprune.save(result, tmp_path / "out.onnx")
    assert result.source.sha256 == read
