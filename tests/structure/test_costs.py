"""What a node takes, by what it has to do: kinds of work, what is fused, figures of this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest
from small_models import graph, random

from onnxprune.errors import ModelError
from onnxprune.pipeline.prepare import prepare
from onnxprune.structure.costs import find_cost, latency, work_of
from onnxprune.structure.figures import BUILT_IN, Figures, figures_file, figures_in_use
from onnxprune.structure.machine import cache_folder, processor
from onnxprune.structure.structure import Structure


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return figures_file()


def network() -> Structure:
    """A stem, a filter by depth, a block with a shortcut, and a product."""
    return prepare(
        graph(
            "agraph (float[1,3,16,16] x) => (float[1,10] y) {"
            "a = Conv <pads = [1,1,1,1]> (x, few) b = Relu(a)"
            "c = Conv <group = 32, pads = [1,1,1,1]> (b, depthwise) d = Conv(c, pointwise)"
            "e = Add(b, d) f = Relu(e) g = Conv <pads = [1,1,1,1]> (f, kernel)"
            "h = MaxPool <kernel_shape = [2,2], strides = [2,2]> (g)"
            "i = GlobalAveragePool(h) j = Flatten(i) k = MatMul(j, product) l = Erf(k) y = Softmax(l) }",
            {
                "few": random(32, 3, 3, 3), "depthwise": random(32, 1, 3, 3), "pointwise": random(32, 32, 1, 1),
                "kernel": random(32, 32, 3, 3), "product": random(32, 10),
            },
        )
    )  # fmt: skip


def test_every_node_has_its_kind_and_what_is_fused_has_none() -> None:
    structure = network()
    shapes = structure.facts.known_shapes()
    works = {str(node.outputs[0].name): work_of(node, shapes, 16) for node in structure.model.graph}
    kinds = {name: None if work is None else work[0] for name, work in works.items()}
    assert kinds == {
        "a": "few", "b": None, "c": "depthwise", "d": "pointwise", "e": None, "f": None, "g": "kernel", "h": "pool",
        "i": "pool", "j": None, "k": "product", "l": "elementwise", "y": "norm",
    }  # fmt: skip
    assert works["d"] == ("pointwise", (32 * 32 * 256, 32 * 256, 32 * 256, 32 * 32, 1.0))
    assert works["k"] == ("product", (320, 32, 10, 320, 1.0))


@pytest.mark.parametrize(("axis", "kind"), [(0, "move"), (1, "pick")])
def test_a_table_is_not_read_where_a_few_of_its_rows_are_copied(axis: int, kind: str) -> None:
    data, indices = ir.Value(name="data"), ir.Value(name="indices")
    node = ir.node("Gather", [data, indices], attributes={"axis": axis})
    shapes = {data: (1000, 8), node.outputs[0]: (4, 8)}
    assert work_of(node, shapes, 16) == (kind, (0, 0, 32, 0, 1.0))


def test_figures_of_this_machine_are_used_for_latency(cache: Path) -> None:
    assert figures_in_use() is BUILT_IN
    twice = {kind: tuple(2 * number for number in work) for kind, work in BUILT_IN.kinds.items()}
    tuned = Figures(twice, 8, 4, processor(), onnxruntime.__version__)  # type: ignore[arg-type]
    tuned.save(cache)
    assert figures_in_use() == tuned and cache.parent == cache_folder()
    structure = network()
    shapes = structure.facts.known_shapes()
    node = next(node for node in structure.model.graph if node.op_type == "MatMul")
    assert find_cost("latency", structure)(node, shapes) == pytest.approx(2 * latency(node, shapes))
    replace(tuned, step=16).save(cache)
    assert figures_in_use().step == 16


@pytest.mark.parametrize("other", [{"processor": "another"}, {"onnxruntime": "0.1"}])
def test_figures_of_another_machine_or_runtime_are_not_used(cache: Path, other: dict[str, str]) -> None:
    fitting = {"processor": processor(), "onnxruntime": onnxruntime.__version__}
    replace(BUILT_IN, **{**fitting, **other}).save(cache)
    assert figures_in_use() is BUILT_IN


@pytest.mark.parametrize("damage", ["cut", "another format", "a kind is missing", "a number is missing", "no object"])
def test_a_damaged_file_is_told(cache: Path, damage: str) -> None:
    BUILT_IN.save(cache)
    text, content = cache.read_text(), json.loads(cache.read_text())
    if damage == "another format":
        content["format"] = "another/1"
    elif damage == "a kind is missing":
        del content["kinds"]["pool"]
    elif damage == "a number is missing":
        content["kinds"]["pool"].pop()
    cache.write_text({"cut": text[:50], "no object": "[]"}.get(damage, json.dumps(content)))
    with pytest.raises(ModelError, match="is damaged: run onnxprune tune again"):
        figures_in_use()
