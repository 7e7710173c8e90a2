"""Models and data that are links, as the cache of the Hugging Face hub keeps them: read, and no further than that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from model_io_models import mlp, stored_external
from onnx import helper, numpy_helper

from onnxprune import model_io
from onnxprune.errors import ModelError


def hub_cache(folder: Path, *, model_is_a_link: bool = True, data_lie: str = "blobs") -> Path:
    """The layout of the Hugging Face cache: snapshots/<revision>/onnx/model.onnx -> ../../../blobs/<hash>."""
    snapshot = folder / "snapshots" / "5f1a" / "onnx"
    for made in (snapshot, folder / "blobs", folder / data_lie):
        made.mkdir(parents=True, exist_ok=True)
    path = stored_external(folder)
    (folder / "weights.bin").rename(folder / data_lie / "d1f0")
    (snapshot / "weights.bin").symlink_to(Path("../../..") / data_lie / "d1f0")
    if model_is_a_link:
        path.rename(folder / "blobs" / "a9e2")
        (snapshot / "model.onnx").symlink_to("../../../blobs/a9e2")
    else:
        path.rename(snapshot / "model.onnx")
    return snapshot / "model.onnx"


def test_the_cache_of_the_hub_is_read_through_its_links(tmp_path: Path) -> None:
    path = hub_cache(tmp_path)
    model = model_io.load(path)
    for tensor in mlp().graph.initializer:
        np.testing.assert_array_equal(
            model.graph.initializers[tensor.name].const_value.numpy(), numpy_helper.to_array(tensor)
        )
    assert len(model_io.sha256(path)) == 64
    source = model_io.source_of(model)
    assert source is not None and source.data_files == (tmp_path / "blobs" / "d1f0",)
    with pytest.raises(ModelError, match="never changed"):
        model_io.save(model, tmp_path / "blobs" / "d1f0", force=True)
    saved = model_io.save(model, tmp_path / "out.onnx")
    assert saved.data_file is not None and model_io.load(saved.path).graph.initializers["w1"].const_value.numpy().any()


def test_constants_of_nodes_are_read_through_the_links_too(tmp_path: Path) -> None:
    path = hub_cache(tmp_path)
    blob = tmp_path / "blobs" / "a9e2"
    proto = onnx.load(blob, load_external_data=False)
    node = helper.make_node("Constant", [], ["w1"], value=proto.graph.initializer[0])
    proto.graph.node.insert(0, node)
    del proto.graph.initializer[0]
    blob.write_bytes(proto.SerializeToString())
    loaded = model_io.load(path).graph.initializers["w1"].const_value
    assert loaded is not None
    np.testing.assert_array_equal(loaded.numpy(), numpy_helper.to_array(mlp().graph.initializer[0]))


@pytest.mark.parametrize(
    ("model_is_a_link", "data_lie"), [(False, "blobs"), (True, "elsewhere"), (True, "blobs/deeper")]
)
def test_other_links_still_lead_out(tmp_path: Path, model_is_a_link: bool, data_lie: str) -> None:
    with pytest.raises(ModelError, match="leads out"):
        model_io.load(hub_cache(tmp_path, model_is_a_link=model_is_a_link, data_lie=data_lie))


def test_links_in_a_circle_are_a_missing_file(tmp_path: Path) -> None:
    path = stored_external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "weights.bin").symlink_to("other.bin")
    (tmp_path / "other.bin").symlink_to("weights.bin")
    for read in (model_io.load, model_io.sha256):
        with pytest.raises(ModelError, match=r"weights.bin"):
            read(path)
