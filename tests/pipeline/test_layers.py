"""`--structure layers`: whole layers of a transformer go, with `--resize-io` also their caches."""

from __future__ import annotations

import json
from pathlib import Path

import decoders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import run as command

import onnxprune as api
from onnxprune import model_io
from onnxprune.errors import NothingToPrune
from onnxprune.structure.analysis import analyse
from onnxprune.structure.blocks import layers_of, residual_blocks

from .test_resize_io import PAST, feeds


def names(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    return [v.name for v in (*graph.input, *graph.output)]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("layers")
    source, target = decoders.write(folder / "original", layers=3), folder / "pruned" / "model.onnx"
    target.parent.mkdir()
    flags = ["-s", "0.4", "--structure", "layers", "--resize-io", "--record", folder / "record.json"]
    assert command(source, *flags, "-o", target) == 0
    return source, target


def test_caches_go_with_their_layers_and_the_others_are_numbered_anew(pruned: tuple[Path, Path]) -> None:
    source, target = pruned
    left = names(target)
    assert left == names_of(2) and names(source) == names_of(3)
    for name in ("config.json", "genai_config.json"):
        settings = json.loads((target.parent / name).read_text())
        assert settings.get("model", {}).get("decoder", settings)["num_hidden_layers"] == 2
    assert sum(node.op_type == "GroupQueryAttention" for node in onnx.load(target).graph.node) == 2


def names_of(layers: int) -> list[str]:
    each = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    return [
        "input_ids",
        "attention_mask",
        *(f"past_key_values.{e}" for e in each),
        "logits",
        *(f"present.{e}" for e in each),
    ]


def test_the_result_is_the_decoder_without_what_the_layer_adds(pruned: tuple[Path, Path]) -> None:
    """Independently: the output projections of the layer are zeroed in the original by hand."""
    source, target = pruned
    left = {t.name for t in onnx.load(target).graph.initializer}
    (gone,) = [i for i in range(3) if f"layers.{i}.out.weight" not in left]
    masked = onnx.load(source)
    for tensor in masked.graph.initializer:
        if tensor.name in (f"layers.{gone}.out.weight", f"layers.{gone}.down.weight"):
            zeros = np.zeros_like(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    wide = feeds(decoders.KV_HEADS, layers=3)
    kept = [i for i in range(3) if i != gone]
    narrow = {name: array for name, array in wide.items() if "." not in name}
    for new, old in enumerate(kept):
        narrow |= {f"past_key_values.{new}.{kind}": wide[f"past_key_values.{old}.{kind}"] for kind in ("key", "value")}
    expected = ort.InferenceSession(masked.SerializeToString()).run(["logits"], wide)[0]
    actual = ort.InferenceSession(str(target)).run(["logits"], narrow)[0]
    assert narrow["past_key_values.0.key"].shape[2] == PAST
    np.testing.assert_allclose(actual, expected, atol=1e-5 * float(np.abs(expected).max()))


def test_layers_begin_with_attention_and_hold_what_follows() -> None:
    layers = layers_of(residual_blocks(analyse(model_io.load_any(decoders.fused(3)))))
    assert layers == []  # outputs read their caches: without --resize-io no attention half can go
    result = api.prune(decoders.fused(3), sparsity=0.4, structure="layers", interface="narrow", latency=False)
    assert len(result.blocks) == 2 and result.verdict is not None and result.verdict.removed_vs_masked < 1e-4


def test_without_caches_to_narrow_layers_are_refused_in_words() -> None:
    with pytest.raises(NothingToPrune, match="attention"):
        api.prune(decoders.fused(2), sparsity=0.4, structure="layers")


def test_the_last_block_of_a_fused_graph_can_go() -> None:
    """Its norm is an output of the graph's last product alone, and takes another name when it goes."""
    result = api.prune(decoders.fused(2), sparsity=0.6, structure="blocks", interface="narrow", latency=False)
    assert any(name.endswith("normed") for name in result.blocks)
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-4


def test_the_cache_that_others_take_the_length_from_may_go(tmp_path: Path) -> None:
    """A position is counted from the first cache, also when the layer of that cache went."""
    proto = decoders.fused(2)
    graph = proto.graph
    nodes = [onnx.helper.make_node("Shape", ["past_key_values.0.key"], ["past"], start=2, end=3),
             onnx.helper.make_node("Cast", ["past"], ["past_float"], to=1),
             onnx.helper.make_node("Add", ["logits_before", "past_float"], ["logits"])]  # fmt: skip
    graph.node[-1].output[0] = "logits_before"
    graph.node.extend(nodes)
    for i in (0, 1):
        result = api.prune(proto, sparsity=0.92, structure="layers", interface="narrow", latency=False,
                           exclude=[f"layers.{i}.*"])  # fmt: skip
        made = model_io.to_proto(result.model)
        session = ort.InferenceSession(made.SerializeToString())
        assert [v.name for v in session.get_inputs() if "past" in v.name] == [
            "past_key_values.0.key",
            "past_key_values.0.value",
        ]
        session.run(None, feeds(decoders.KV_HEADS, layers=1))


def test_layers_that_hold_caches_are_told_with_the_flag_that_frees_them(tmp_path: Path) -> None:
    with pytest.raises(NothingToPrune, match="--resize-io"):
        api.prune(decoders.write(tmp_path, layers=2), sparsity=0.4, structure="layers")
