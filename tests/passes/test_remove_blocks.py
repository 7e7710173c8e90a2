"""Whole blocks: removed == masked, block by block and all together."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import zoo

from onnxprune import model_io, runtime
from onnxprune.passes import MaskBlocks, RemoveBlocks, Tidy
from onnxprune.pipeline.prepare import prepare
from onnxprune.structure.blocks import residual_blocks


def names_of(model: ir.Model) -> list[str]:
    return [b.name for b in residual_blocks(prepare(model.clone()))]


def changed(model: ir.Model, names: Collection[str], change: type[RemoveBlocks] | type[MaskBlocks]) -> ir.Model:
    structure = prepare(model.clone())
    change([b for b in residual_blocks(structure) if b.name in names])(structure.model)
    Tidy()(structure.model)
    return structure.model


def difference(model: ir.Model, names: Collection[str], feeds: runtime.Feeds) -> float:
    """How far removed and masked are apart, relative to the largest output."""
    removed, masked = (changed(model, names, change) for change in (RemoveBlocks, MaskBlocks))
    assert sum(1 for _ in removed.graph) < sum(1 for _ in model.graph)
    assert len(removed.graph.initializers) < len(masked.graph.initializers)
    got, expected = (runtime.run(runtime.make_session(m), feeds) for m in (removed, masked))
    return runtime.compare_outputs(expected, got).max_rel


@pytest.mark.parametrize(
    ("name", "exporter", "count"),
    [
        ("resnet_basic", "legacy", 4),
        ("resnet_batchnorm", "legacy", 4),
        ("convnext", "legacy", 3),
        ("vit", "legacy", 4),
        ("gpt", "legacy", 4),
    ],
)
def test_without_blocks_a_network_is_what_it_is_with_their_outputs_zeroed(name: str, exporter: str, count: int) -> None:
    model = ir.from_proto(zoo.export(name, exporter))
    names = names_of(model)
    assert len(names) == count
    for chosen in (names[:1], names[1::2], names):
        assert difference(model, chosen, zoo.feeds(name, 2)) < 1e-5


def test_an_output_keeps_its_name() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 13]>
            g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)
            <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 2, 3, 4}> {
              h = MatMul(x, w) y = Add(x, h) k = MatMul(y, v) z = Add(y, k)
            }"""
        )
    )
    for names in (["y"], ["z"], ["y", "z"]):
        removed = changed(model, names, RemoveBlocks)
        assert [v.name for v in removed.graph.outputs] == ["y", "z"]
        assert difference(model, names, {"x": np.ones((3, 2), np.float32)}) == 0


@pytest.mark.zoo
@pytest.mark.parametrize("file", ["own_resnet20_cifar_ts_bn_op17.onnx", "vittrack.onnx", "yolox_nano_opencvzoo.onnx"])
def test_real_models(file: str, shared: Path) -> None:
    model = model_io.load(shared / "zoo" / file)
    names = names_of(model)
    assert names
    session = runtime.make_session(model)
    (feeds,) = runtime.working_inputs(model, seed=0, count=1, session=session)
    for chosen in (names[:1], names[::2], names):
        assert difference(model, chosen, feeds) < 1e-4
