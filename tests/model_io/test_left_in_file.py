"""Large weights of a large file stay in it until they are needed, and nothing else is different."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from model_io_models import damaged_model, mlp, stored

import onnxprune
from onnxprune import model_io
from onnxprune.errors import ModelError
from onnxprune.model_io import loading, wire
from onnxprune.runtime import session


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as a large one, every weight as a large weight."""
    monkeypatch.setattr(loading, "_LARGE", 0)
    monkeypatch.setattr(wire, "SMALLEST_LEFT", 0)
    monkeypatch.setattr(session, "_IN_MEMORY_LIMIT", 0)
    monkeypatch.setattr(session, "_CHECK_LIMIT", 0)


def left_of(model: ir.Model) -> list[str]:
    return [n for n, v in model.graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)]


def test_weights_stay_in_the_file_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path, mlp(width=64))
    whole = model_io.load(path)
    assert not left_of(whole)
    monkeypatch.setattr(loading, "_LARGE", 0)
    monkeypatch.setattr(wire, "SMALLEST_LEFT", 1024)
    left = model_io.load(path)
    assert 0 < len(left_of(left)) < len(left.graph.initializers)
    for name, value in whole.graph.initializers.items():
        ours = left.graph.initializers[name].const_value
        assert value.const_value is not None and ours is not None
        np.testing.assert_array_equal(ours.numpy(), value.const_value.numpy())
    assert model_io.to_bytes(left) == model_io.to_bytes(whole)


@pytest.mark.parametrize("structure", ["channels", "weights", "2:4"])
@pytest.mark.usefixtures("all_large")
def test_what_is_written_is_the_same(tmp_path: Path, structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path, mlp(width=64))
    written = []
    for large in (True, False):
        if not large:
            monkeypatch.setattr(loading, "_LARGE", 1 << 40)
        result = onnxprune.prune(path, sparsity=0.5, structure=structure, latency=False)
        assert bool(left_of(model_io.load(path))) == large
        onnxprune.save(result, tmp_path / "out.onnx", force=True)
        written.append((tmp_path / "out.onnx").read_bytes())
    assert written[0] == written[1]
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".data"] == []


@pytest.mark.usefixtures("all_large")
def test_a_file_that_changes_before_the_result_is_saved_is_noticed(tmp_path: Path) -> None:
    path = stored(tmp_path, mlp(width=64))
    result = onnxprune.prune(path, sparsity=0.5, structure="channels", latency=False)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="model.onnx' was changed or replaced"):
        onnxprune.save(result, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.usefixtures("all_large")
def test_links(tmp_path: Path) -> None:
    """A link may lead out of its folder; a file of several names may be replaced under another, so that it is read."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = stored(folder, mlp(width=64))
    expected = model_io.to_bytes(model_io.load(path))
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    through_link = model_io.load(link)
    assert left_of(through_link) and model_io.to_bytes(through_link) == expected
    os.link(path, tmp_path / "second.onnx")
    assert not left_of(model_io.load(path))


@pytest.mark.usefixtures("all_large")
def test_bytes_that_do_not_fit_the_shape_are_refused(tmp_path: Path) -> None:
    proto = mlp(width=64)
    proto.graph.initializer[0].raw_data += b"more"
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="is damaged: tensor .* needs .* bytes but has"):
        model_io.load(tmp_path / "model.onnx")


@pytest.mark.usefixtures("all_large")
def test_two_weights_of_one_name_are_read(tmp_path: Path) -> None:
    """Of these only the first stays in the file: both have to be seen for what is wrong with them."""
    proto = mlp(width=64)
    proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
    content, left = proto.SerializeToString(), dict[str, wire.Extent]()
    parsed = wire.parse_model(content, left=left)
    first, *_, last = parsed.graph.initializer
    assert not first.HasField("raw_data") and last.HasField("raw_data")


@given(st.data())
def test_damaged_bytes_are_refused_by_both_or_by_neither(data: st.DataObject) -> None:
    damaged = damaged_model(data)
    left: dict[str, wire.Extent] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "SMALLEST_LEFT", 0)
        try:
            expected = onnx.ModelProto.FromString(damaged)
        except DecodeError:
            with pytest.raises((DecodeError, wire.WireError)):
                wire.parse_model(damaged, left=left)
            return
        parsed = wire.parse_model(damaged, left=left)
    for tensor in parsed.graph.initializer:
        if tensor.name in left and not tensor.HasField("raw_data"):
            offset, length = left.pop(tensor.name)
            tensor.raw_data = damaged[offset : offset + length]
    assert parsed.SerializeToString() == expected.SerializeToString()
