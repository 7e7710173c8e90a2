"""Multiply-adds are those of one sample at stated shapes, the same in every place that gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_models import graph, random, two_layers

import onnxprune
from onnxprune import model_io, runtime


def sequence_model() -> ir.Model:
    return graph(
        "agraph (float[N,T,8] x) => (float[N,T,4] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }",
        {"w1": random(8, 32), "w2": random(32, 4)},
    )


@pytest.mark.parametrize("model", [two_layers(32), sequence_model()], ids=["a free batch", "batch and length"])
def test_inspect_and_prune_count_one_sample(model: ir.Model) -> None:
    sample = runtime.one_sample(model)
    assert {array.shape[0] for array in sample.values()} == {1}
    found = onnxprune.inspect(model)
    result = onnxprune.prune(model, sparsity=0.5, structure="channels", latency=False)
    assert result.verdict is not None and result.verdict.before.macs == found.macs
    assert found.input_shapes == dict(result.verdict.input_shapes) == {n: a.shape for n, a in sample.items()}
    rows = int(sample["x"].size // 8)
    assert found.macs == rows * (8 * 32 + 32 * 4)


def test_a_fixed_batch_stays_what_it_is() -> None:
    model = graph("agraph (float[3,8] x) => (float[3,4] y) { y = MatMul(x, w) }", {"w": random(8, 4)})
    assert onnxprune.inspect(model).input_shapes == {"x": (3, 8)}


def test_a_model_that_states_all_shapes_is_not_run_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("agraph (float[3,8] x) => (float[3,4] y) { y = MatMul(x, w) }", {"w": random(8, 4)})
    monkeypatch.setattr(runtime, "one_sample", lambda *_: pytest.fail("it was run"))
    found = onnxprune.inspect(model)
    assert found.macs == 3 * 8 * 4 and found.input_shapes == {"x": (3, 8)}


@pytest.mark.parametrize("form", ["plain", "numbers one by one", "external"])
def test_bytes_are_those_of_the_files_of_the_user(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = model_io.to_proto(two_layers(64))
    if form == "numbers one by one":  # as some writers store them; ours stores them as raw bytes
        for tensor in proto.graph.initializer:
            array = numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
            (tensor.float_data if array.dtype == np.float32 else tensor.int64_data).extend(array.flatten().tolist())
        proto.doc_string = "notes " * 1000
    external = form == "external"
    onnx.save(proto, path, save_as_external_data=external, location="data.bin", size_threshold=0)
    whole = sum(file.stat().st_size for file in tmp_path.iterdir())
    result = onnxprune.prune(path, sparsity=0.5, structure="channels", latency=False)
    assert result.verdict is not None and result.verdict.before.file_bytes == whole
    assert onnxprune.compare(path, result.model).before.file_bytes == whole
    again = onnxprune.prune(result.model, sparsity=0.1, structure="channels", latency=False)
    assert again.verdict is not None and again.verdict.before.file_bytes == result.verdict.after.file_bytes
