"""`--resize-io`: heads of caches go, with inputs, outputs and settings files narrowed together."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import decoders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import refused
from command_line import run as command

import onnxprune as api
from onnxprune import model_io
from onnxprune.errors import RecipeError, VerificationError
from onnxprune.graph.narrowing import free_caches, narrow_caches
from onnxprune.pipeline.check import verify as check
from onnxprune.pipeline.runtime_settings import Numbers, rewritten
from onnxprune.structure.analysis import analyse

PAST = 3


def feeds(heads: int, size: int = decoders.SIZE, seed: int = 0, layers: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = [f"past_key_values.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    caches = {name: rng.standard_normal((1, heads, PAST, size)).astype(np.float32) for name in names}
    tokens, mask = rng.integers(0, decoders.VOCABULARY, (1, 5)), np.ones((1, 5 + PAST), np.int64)
    return {"input_ids": tokens, "attention_mask": mask, **caches}


def run(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model if isinstance(model, bytes) else str(model))
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


def extents(path: Path) -> dict[str, int]:
    graph = onnx.load(path).graph
    return {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in (*graph.input, *graph.output) if "." in v.name}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A decoder of two layers without two of its four KV groups, written by the command line."""
    folder = tmp_path_factory.mktemp("decoder")
    source, target = decoders.write(folder / "original"), folder / "pruned" / "model.onnx"
    target.parent.mkdir()
    flags = ["--sparsity", "0.5", "--structure", "channels", "--kinds", "heads", "--resize-io"]
    assert command(source, *flags, "-o", target, "--record", folder / "record.json") == 0
    return source, target


def test_without_the_flag_the_interface_stays_and_only_repeats_go(tmp_path: Path) -> None:
    source = decoders.write(tmp_path / "original")
    flags = ["-s", "0.2", "--structure", "channels", "--kinds", "heads"]
    assert command(source, *flags, "-o", tmp_path / "p.onnx") == 0
    assert set(extents(tmp_path / "p.onnx").values()) == {decoders.KV_HEADS}


def test_inputs_and_outputs_lose_the_same_heads_in_every_layer(pruned: tuple[Path, Path]) -> None:
    _, target = pruned
    assert set(extents(target).values()) == {2} and len(extents(target)) == 8
    nodes = [node for node in onnx.load(target).graph.node if node.op_type == "GroupQueryAttention"]
    numbers = [{a.name: a.i for a in node.attribute} for node in nodes]
    assert [n["kv_num_heads"] for n in numbers] == [2, 2]
    assert not any(node.op_type == "Einsum" for node in onnx.load(target).graph.node)


def test_the_narrow_model_computes_what_the_masked_one_does(pruned: tuple[Path, Path]) -> None:
    """Independently of the pipeline: rows of the output projection are zeroed by hand, and caches are cut by hand."""
    source, target = pruned
    record = json.loads((target.parent.parent / "record.json").read_text())
    kept = record["kept"]["cache_heads"]["1"]
    masked, per_head = onnx.load(source), decoders.SIZE
    groups = decoders.HEADS // decoders.KV_HEADS
    for tensor in masked.graph.initializer:
        indices = record["kept"].get(tensor.name, {})
        if tensor.name.endswith("out.weight"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            gone = np.setdiff1d(np.arange(len(array)), indices["0"])
            assert len(gone) >= groups * per_head
            array[gone] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    inputs = feeds(decoders.KV_HEADS)
    narrow = {n: a[:, kept] if n.startswith("past") else a for n, a in inputs.items()}
    expected, actual = run(masked.SerializeToString(), inputs), run(target, narrow)
    np.testing.assert_allclose(actual["logits"], expected["logits"], atol=1e-5)
    # The caches of the first layer hold what they did; those behind it depend on the heads that went.
    np.testing.assert_allclose(actual["present.0.key"], expected["present.0.key"][:, kept], atol=1e-5)


def test_settings_files_beside_the_model_follow(pruned: tuple[Path, Path]) -> None:
    source, target = pruned
    genai = json.loads((target.parent / "genai_config.json").read_text())["model"]["decoder"]
    assert (genai["num_key_value_heads"], genai["head_size"], genai["filename"]) == (2, decoders.SIZE, "model.onnx")
    config = json.loads((target.parent / "config.json").read_text())
    assert config["num_key_value_heads"] == 2 and config["head_dim"] == decoders.SIZE
    (heads,) = {a.i for node in onnx.load(target).graph.node for a in node.attribute if a.name == "num_heads"}
    assert config["num_attention_heads"] == genai["num_attention_heads"] == heads < decoders.HEADS
    assert config["intermediate_size"] == decoders.INNER and config["hidden_size"] == decoders.WIDTH
    assert json.loads((source.parent / "config.json").read_text())["num_key_value_heads"] == decoders.KV_HEADS


def test_the_cut_can_be_verified_later(pruned: tuple[Path, Path]) -> None:
    source, target = pruned
    found = check(source, target, target.parent.parent / "record.json")
    assert found.removed_vs_masked is not None and found.removed_vs_masked < 1e-4 and not found.unproved
    with pytest.raises(VerificationError, match="give --record"):
        check(source, target)


def test_settings_of_the_original_are_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = decoders.write(tmp_path)
    flags = ["-s", "0.4", "--structure", "channels", "--resize-io"]
    assert "folder of its own" in refused(capsys, tmp_path, source, *flags, "-o", tmp_path / "p.onnx")


def test_positions_inside_heads_go_where_the_operators_allow_it() -> None:
    """A cache that a Concat extends: both its axes go, and both caches agree."""
    proto = plain_decoder()
    result = api.prune(proto, sparsity=0.5, structure="channels", interface="narrow", latency=False, allow_inexact=True)
    graph = model_io.to_proto(result.model).graph
    shapes = {tuple(d.dim_value for d in v.type.tensor_type.shape.dim if d.dim_value)
              for v in (*graph.input, *graph.output) if v.name != "x" and v.name != "y"}  # fmt: skip
    assert len(shapes) == 1 and shapes != {(4, 6)}
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-4


def plain_decoder() -> onnx.ModelProto:
    """Attention without positions over a cache, by MatMul and Softmax."""
    text = """<ir_version: 10, opset_import: ["": 17]> agraph (float[b, s, 8] x, float[b, 4, p, 6] past_key,
        float[b, 4, p, 6] past_value) => (float[b, s, 8] y, float[b, 4, t, 6] present_key,
        float[b, 4, u, 6] present_value) {
        shape = Constant<value_ints = [0, 0, 4, 6]>()  flat = Constant<value_ints = [0, 0, 24]>()
        q0 = MatMul(x, wq)  q1 = Reshape(q0, shape)  q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k0 = MatMul(x, wk)  k1 = Reshape(k0, shape)  k = Transpose<perm = [0, 2, 1, 3]>(k1)
        v0 = MatMul(x, wv)  v1 = Reshape(v0, shape)  v = Transpose<perm = [0, 2, 1, 3]>(v1)
        present_key = Concat<axis = 2>(past_key, k)  present_value = Concat<axis = 2>(past_value, v)
        turned = Transpose<perm = [0, 1, 3, 2]>(present_key)
        scores = MatMul(q, turned)  seen = Softmax<axis = -1>(scores)
        o = MatMul(seen, present_value)  o1 = Transpose<perm = [0, 2, 1, 3]>(o)
        o2 = Reshape(o1, flat)  y = MatMul(o2, wo) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("wq", (8, 24)), ("wk", (8, 24)), ("wv", (8, 24)), ("wo", (24, 8))):
        array = (rng.standard_normal(shape) / 3).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def plain_network() -> onnx.ModelProto:
    """Two products, no cache."""
    text = """<ir_version: 10, opset_import: ["": 17]> g (float[b, 8] x) => (float[b, 4] y) {
        h = MatMul(x, w) y = MatMul(h, v) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in (("w", (8, 12)), ("v", (12, 4))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    return proto


def test_a_model_without_caches_is_refused() -> None:
    proto = plain_network()
    with pytest.raises(RecipeError, match="no caches"):
        api.prune(proto, sparsity=0.3, structure="channels", interface="narrow")
    with pytest.raises(RecipeError, match="--resize-io"):
        api.prune(proto, sparsity=0.3, interface="narrow")


def test_freeing_and_narrowing_without_a_cut_changes_nothing() -> None:
    model = model_io.load_any(decoders.fused())
    before = model_io.to_proto(model).SerializeToString(deterministic=True)
    assert free_caches(model) == 4
    assert any(g.kind == "heads" and len(g) == decoders.KV_HEADS for g in analyse(model).groups)
    narrowed = narrow_caches(model)
    assert not narrowed.kept and set(narrowed.heads) == {decoders.KV_HEADS}
    inputs = feeds(decoders.KV_HEADS)
    after = run(model_io.to_proto(model).SerializeToString(), inputs)
    for name, array in run(before, inputs).items():
        np.testing.assert_array_equal(after[name], array)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed")
def test_the_narrow_model_generates(pruned: tuple[Path, Path]) -> None:
    import onnxruntime_genai as og

    _, target = pruned
    model = og.Model(str(target.parent))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=12)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([[5, 6, 7]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    tokens = list(generator.get_sequence(0))
    assert len(tokens) > 3 and all(0 <= token < decoders.VOCABULARY for token in tokens)
    assert tokens == greedy(target, tokens[:3], len(tokens))


def greedy(path: Path, tokens: list[int], length: int) -> list[int]:
    """The same generation by the whole sequence at every step, without a cache."""
    while len(tokens) < length:
        inputs = feeds(2)
        inputs = {n: a[:, :, :0] if n.startswith("past") else a for n, a in inputs.items()}
        inputs |= {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
        tokens = [*tokens, int(run(path, inputs)["logits"][0, -1].argmax())]
    return tokens


def test_inspection_says_what_the_flag_frees() -> None:
    found = api.inspect(decoders.fused())
    assert found.caches is not None and found.caches.count == 4 and found.caches.layers == 2
    assert found.caches.units == {"KV groups": decoders.KV_HEADS}
    assert found.caches.unit_parameters > found.unit_parameters
    assert api.inspect(plain_network()).caches is None


def test_what_the_network_is_stands_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert command("inspect", decoders.write(tmp_path)) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("model.onnx")
    assert second.startswith("decoder, 2 layers, 8 heads in 4 KV groups, head size 16, MLP 48, ")
    assert second.endswith(" parameters")


def test_recovery_leaves_the_products_of_caches_alone() -> None:
    """They are no layers: nothing is said of them, and nothing of them is in the result."""
    count = 8
    data = {name: np.concatenate([feeds(decoders.KV_HEADS, seed=i)[name][..., :0, :] if "past" in name
                                  else feeds(decoders.KV_HEADS, seed=i)[name][:, :5] for i in range(count)])
            for name in feeds(decoders.KV_HEADS)}  # fmt: skip
    result = api.prune(decoders.fused(), sparsity=0.4, structure="channels", interface="narrow", latency=False,
                       calibration=data)  # fmt: skip
    assert result.recovered is not None and not any("Einsum" in note for note in result.notes)
    assert not any(node.op_type == "Einsum" for node in result.model.graph)


def test_alignment_trains_layers_and_no_products_of_caches() -> None:
    """They are identity matrices; others would not be those of a narrow interface, as the verdict finds."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = {"x": (32, 5, 8), "past_key": (32, 4, 2, 6), "past_value": (32, 4, 2, 6)}
    data = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    result = api.prune(plain_decoder(), sparsity=0.3, structure="channels", interface="narrow", latency=False,
                       calibration=data, recover=("align",))  # fmt: skip
    assert result.recovered is not None and result.verdict is not None
    assert any(value.shape is not None and value.shape[1] < 4 or value.shape[3] < 6
               for value in result.model.graph.inputs[1:])  # fmt: skip


def test_the_head_size_that_optimum_divides_out_stays() -> None:
    """It takes hidden_size // num_attention_heads, also beside a head_dim."""
    config = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    text = rewritten(json.dumps(config), Numbers(kv_heads=2, size=8, heads=4), {}, "m.onnx")
    assert json.loads(text) == {**config, "num_key_value_heads": 2}
    text = rewritten(json.dumps(config), Numbers(kv_heads=2, size=4, heads=4), {}, "m.onnx")
    assert json.loads(text) == {**config, "num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 4}


def test_settings_say_how_many_experts_are_left(tmp_path: Path) -> None:
    source, target = decoders.write(tmp_path / "original", experts=6), tmp_path / "pruned" / "model.onnx"
    target.parent.mkdir()
    flags = ["-s", "0.9", "--structure", "channels", "--kinds", "experts", "--allow-inexact", "--round-to", "none"]
    assert command(source, *flags, "--resize-io", "-o", target) == 0
    config = json.loads((target.parent / "config.json").read_text())
    assert config["num_local_experts"] == decoders.TAKEN
    assert config["intermediate_size"] == decoders.INNER and config["num_key_value_heads"] == decoders.KV_HEADS
