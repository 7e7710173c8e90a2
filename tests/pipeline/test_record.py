"""Records: whatever a file claims to be one ends in a sentence; one is never written over what was read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, run
from model_io_models import mlp, stored, stored_external

import onnxprune
from onnxprune.errors import DataError, ModelError
from onnxprune.pipeline.record import load_record


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("record")
    source = stored(folder, mlp(width=16))
    result = onnxprune.prune(source, sparsity=0.5, structure="channels", latency=False)
    onnxprune.save(result, folder / "out.onnx", record=folder / "record.json")
    return source, folder / "out.onnx", json.loads((folder / "record.json").read_text())


ODD_AXES = [{"x": [0]}, {"-1": [0]}, {"7": [0]}, {"0": [0, 0]}, {"0": [3, 1]}, {"0": [-1]}, {"0": [10**9]}, {"²": [0]}]
ODD_AXES += [{"0": []}, {"1" * 5000: [0]}, {"0": [10**30]}, {"": [1]}]


@pytest.mark.parametrize("axes", ODD_AXES, ids=[str(axes)[:20] for axes in ODD_AXES])
@pytest.mark.parametrize("name", ["w1", "nobody"])
def test_odd_axes(
    written: tuple[Path, Path, dict[str, Any]],
    axes: dict[str, list[int]],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out, record = written
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({**record, "kept": {**record["kept"], name: axes}}))
    status = run("verify", source, out, "--record", path)
    said = capsys.readouterr().err
    assert status in ((0, 1, 2) if name == "nobody" else (1, 2))
    assert "inside onnxprune" not in said and said.count("\n") <= 1


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b'{"format": "onnxprune-record/1"}',
        b"{" * 9,
    ],
    ids=range(8),
)
def test_what_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(DataError):
        load_record(tmp_path / "r")


@pytest.mark.parametrize("command", [("verify", "model.onnx", "model.onnx", "--record", "pipe"), ("run", "pipe")])
def test_a_pipe_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path, mlp(width=16))
    os.mkfifo("pipe")
    assert "not a regular file" in refused(capsys, tmp_path, *command)


def test_a_record_is_not_written_over_what_was_read_or_unasked(tmp_path: Path) -> None:
    source = stored_external(tmp_path, mlp(width=16))
    result = onnxprune.prune(source, sparsity=0.5, latency=False)
    for name in ("model.onnx", "weights.bin"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ModelError, match="never changed"):
            onnxprune.save(result, tmp_path / "out.onnx", record=tmp_path / name, force=True)
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "mine.json").write_text("mine")
    with pytest.raises(ModelError, match="--force"):
        onnxprune.save(result, tmp_path / "out.onnx", record=tmp_path / "mine.json")
    assert not (tmp_path / "out.onnx").exists()
