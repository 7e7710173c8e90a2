"""Data that are damaged, enormous, endless or wrong end in one sentence, before anything waits or fills the memory."""

from __future__ import annotations

import io
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from PIL import Image
from training_models import blobs, convnet, mlp

from onnxprune import model_io
from onnxprune.data import stream
from onnxprune.data.metrics import METRICS
from onnxprune.data.npz import read_npz
from onnxprune.data.readers import open_data, read_data
from onnxprune.data.sources import first_batch
from onnxprune.errors import DataError, OnnxPruneError
from onnxprune.recipe.training import DataSettings
from onnxprune.verification.evaluate import evaluate

X, LABEL = blobs(20)


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv", "", "mat"])
def test_a_pipe_is_refused_at_once(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / (f"pipe.{suffix}" if suffix else "pipe")
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe, no file"):
        read_data(path, mlp())


def test_a_device_and_a_folder_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a device or socket, no file"):
        read_data(tmp_path / "zero.npz", mlp())
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match="is a folder, no file"):
        read_data(tmp_path / "folder.npz", mlp())


def bomb(path: Path, shape: tuple[int, ...], *, whole: bool) -> None:
    """An archive of a few kilobytes whose one array states, and maybe holds, far more."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as out,
    ):
        out.write(file.getvalue())
        for _ in range(64 if whole else 0):
            out.write(bytes(1 << 20))


def test_a_bomb_is_known_by_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is unpacked: neither where the array states more than the file holds, nor more than the memory."""
    bomb(tmp_path / "lie.npz", (1 << 40,), whole=False)
    with pytest.raises(DataError, match="states 4,398,046,511,104 bytes, and the file holds"):
        read_npz(tmp_path / "lie.npz")
    bomb(tmp_path / "bomb.npz", (16, 1 << 20), whole=True)
    monkeypatch.setattr("onnxprune.data.npz._free_memory", lambda: 50 << 20)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"unpacks to 67,108,864 bytes, more than the memory.*'x' has the shape \[16,"):
        read_npz(tmp_path / "bomb.npz")


def test_an_npy_is_the_one_input_of_a_model(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    data = read_data(tmp_path / "x.npy", mlp())
    assert data.outputs == () and np.array_equal(first_batch(data.source, 20).inputs[0], X)
    two = model_io.load_any(parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[N, 8] a, float[N, 8] b) => (float[N, 8] y) { y = Add(a, b) }'
    ))  # fmt: skip
    with pytest.raises(DataError, match="holds one array, but the model takes 2"):
        read_data(tmp_path / "x.npy", two)
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object))
    with pytest.raises(DataError, match="Python objects"):
        read_data(tmp_path / "x.npy", mlp())
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(DataError, match="is not an .npy file"):
        read_data(tmp_path / "x.npy", mlp())


def test_nan_is_found_where_it_is() -> None:
    wrong = X.copy()
    wrong[13, 2] = np.nan
    with pytest.raises(DataError, match="input 'x' hold NaN, first in sample 13"):
        open_data(mlp(), {"x": wrong, "label": LABEL})


def test_nan_is_data_for_a_model_that_looks_for_it() -> None:
    text = """<ir_version: 8, opset_import: ["":17]> g (float[N, 2] x) => (float[N, 2] y)
        <float zero = {0.0}> { m = IsNaN(x) y = Where(m, zero, x) }"""
    model = model_io.load_any(parser.parse_model(text))
    assert open_data(model, {"x": np.full((3, 2), np.nan, np.float32)}).source.count == 3


@pytest.mark.parametrize(
    "values",
    [[[1.0, 2.0], [3.0]], np.array([{"a": 1}], object), [object()], None],
    ids=["ragged", "dicts", "objects", "nothing"],
)
def test_what_is_no_array_of_numbers_is_refused(values: Any) -> None:
    with pytest.raises(DataError, match="'x'"):
        open_data(mlp(), {"x": values, "label": LABEL})


def test_an_image_that_unpacks_to_too_much_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="large.png' cannot be read as an image"):
        read_data(tmp_path, convnet())


# --- functions


def hangs() -> Iterator[Any]:
    time.sleep(30)
    yield X


def hangs_later() -> Iterator[Any]:
    yield X[:4], LABEL[:4]
    time.sleep(30)


def fails() -> Iterator[Any]:
    yield X[:4], LABEL[:4]
    raise KeyError("shelf")


def stops() -> Iterator[Any]:
    sys.exit("done")
    yield X


def ragged() -> Iterator[Any]:
    yield [[[1.0, 2.0], [3.0]]], [[0, 1]]


def no_iterator() -> int:
    return 3


def words() -> Iterator[Any]:
    yield "batch"


def two_many() -> Iterator[Any]:
    yield (X[:4], X[:4], X[:4]), LABEL[:4]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (hangs, "gave no batch within 0.3 seconds.*--data-timeout"),
        (hangs_later, "gave no batch within 0.3 seconds"),
        (fails, r"failed with KeyError: 'shelf' \(.*test_hostile.py, line \d+\)"),
        (stops, r"failed with SystemExit: done \(.*test_hostile.py, line \d+\)"),
        (ragged, "no array of numbers"),
        (no_iterator, "failed with TypeError"),
        (words, "input 'x' have shape"),
        (two_many, "has 3 inputs, but the model takes 1: 'x'"),
    ],
)
def test_a_function_that_misbehaves_ends_in_a_sentence(function: Callable[..., Any], words: str) -> None:
    model: ir.Model = mlp()
    began = time.monotonic()
    with pytest.raises(DataError, match=words):
        data = read_data(f"{__name__}:{function.__name__}", model, DataSettings(timeout=0.3))
        list(data.source.epoch(4))
    assert time.monotonic() - began < 10


def never_ends() -> Iterator[Any]:
    while True:
        yield X[:4], LABEL[:4]


def test_a_function_that_never_ends_is_read_as_far_as_was_said() -> None:
    data = read_data(f"{__name__}:never_ends", mlp(), DataSettings(samples=10))
    for _ in range(2):
        assert [len(batch) for batch in data.source.epoch(4)] == [4, 4, 2]


def test_a_function_that_never_ends_is_stopped_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_MOST", 50)
    data = read_data(f"{__name__}:never_ends", mlp())
    with pytest.raises(DataError, match="never_ends' has given 50 samples and has not ended: .*--data-samples N"):
        list(data.source.epoch(4))


# --- metrics of the user


def broken(outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> float:
    return float(outputs[0].sum() / len(targets[7]))


broken.higher_is_better = False  # type: ignore[attr-defined]


def leaving(outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> float:
    sys.exit(0)


def text(outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> str:
    return "good"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("broken", r"broken' failed with IndexError: tuple index out of range \(.*test_hostile.py, line \d+\)"),
        ("leaving", r"leaving' failed with SystemExit: 0 \(.*test_hostile.py, line \d+\)"),
        ("text", "gave 'good', which is no number"),
    ],
)
def test_a_metric_that_fails_is_named_with_its_line(function: str, words: str) -> None:
    model = mlp()
    with pytest.raises(OnnxPruneError, match=words):
        evaluate(model, open_data(model, {"x": X, "label": LABEL}), f"{__name__}:{function}")
    assert METRICS.find(f"{__name__}:broken").higher_is_better is False


def test_a_module_that_fails_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_written.py").write_text("def batches():\n    yield 1\n\nraise ValueError('not yet')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OnnxPruneError, match=r"cannot be imported: ValueError: not yet \(.*half_written.py, line 4\)"):
        read_data("half_written:batches", mlp())
