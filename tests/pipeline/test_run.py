"""The whole run from Python: what is promised of every result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import array, conv_net, graph, halved, random, two_layers

import onnxprune
from onnxprune import model_io
from onnxprune.errors import DataError, NothingToPrune, RecipeError
from onnxprune.pipeline.check import verify as check
from onnxprune.pipeline.record import load_record

MODELS = Path(__file__).resolve().parents[2] / "models"
TRAINED = sorted(MODELS.glob("digits_*.onnx"))


@pytest.mark.parametrize("path", TRAINED, ids=lambda p: p.stem)
@pytest.mark.parametrize("structure", ["weights", "channels"])
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_trained_models(path: Path, structure: str, sparsity: float) -> None:
    result = onnxprune.prune(path, sparsity=sparsity, structure=structure, latency=False)
    assert result.sparsity == pytest.approx(sparsity, abs=0.01)
    assert all("give --calibration" in note for note in result.notes)  # the warning of a ruined model
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-4
    if structure == "channels":
        assert result.verdict.after.parameters < result.verdict.before.parameters
    else:
        assert result.verdict.after.parameters == result.verdict.before.parameters


def test_the_input_in_memory_is_never_changed() -> None:
    model = conv_net()
    before = model_io.to_bytes(model)
    onnxprune.prune(model, sparsity=0.5, structure="channels", latency=False)
    assert model_io.to_bytes(model) == before


def test_any_form_of_a_model_is_taken() -> None:
    proto = onnx.load(TRAINED[0])
    a = onnxprune.prune(proto, sparsity=0.5, latency=False)
    b = onnxprune.prune(str(TRAINED[0]), sparsity=0.5, latency=False)
    assert model_io.to_bytes(a.model) == model_io.to_bytes(b.model)


@pytest.mark.parametrize("structure", ["weights", "channels"])
def test_same_input_recipe_and_seed_same_bytes(structure: str, tmp_path: Path) -> None:
    settings = {"sparsity": 0.5, "structure": structure, "criterion": "random", "seed": 3, "latency": False}
    files = []
    for name in ("a.onnx", "b.onnx"):
        onnxprune.save(onnxprune.prune(TRAINED[0], **settings), tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_names_opset_metadata_inputs_and_outputs_are_kept(tmp_path: Path) -> None:
    for path in TRAINED:
        onnxprune.save(onnxprune.prune(path, sparsity=0.5, structure="channels", latency=False), tmp_path / path.name)
        before, after = onnx.load(path), onnx.load(tmp_path / path.name)
        onnx.checker.check_model(after, full_check=True)
        assert after.graph.input == before.graph.input
        assert after.graph.output == before.graph.output
        assert [(o.domain, o.version) for o in after.opset_import] == [("", 18)]
        assert list(after.metadata_props) == list(before.metadata_props)
        assert after.producer_name == before.producer_name


def test_surviving_weights_are_bit_identical() -> None:
    model = conv_net(64)
    result = onnxprune.prune(model, sparsity=0.6, structure="channels", latency=False)
    for name, tensor in ((n, array(result.model, n)) for n in result.model.graph.initializers):
        expected = array(model, name)
        for axis, indices in result.kept.get(name, {}).items():
            expected = np.take(expected, indices, axis=axis)
        assert tensor.tobytes() == expected.tobytes()


def test_the_record_rebuilds_the_pruned_model(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    model_io.save(conv_net(64), source)
    onnxprune.save(
        onnxprune.prune(source, sparsity=0.5, structure="channels", latency=False),
        tmp_path / "pruned.onnx",
        record=tmp_path / "r.json",
    )
    record = load_record(tmp_path / "r.json")
    assert record.source.sha256 == model_io.sha256(source)
    assert record.output.sha256 == model_io.sha256(tmp_path / "pruned.onnx")
    found = check(source, tmp_path / "pruned.onnx", tmp_path / "r.json")
    assert found.removed_vs_masked is not None and found.removed_vs_masked < 1e-5
    assert found.cut >= 2 and found.changed == 0


def test_a_record_of_another_model_is_refused(tmp_path: Path) -> None:
    for name, width in (("a", 64), ("b", 48)):
        model_io.save(conv_net(width), tmp_path / f"{name}.onnx")
        result = onnxprune.prune(tmp_path / f"{name}.onnx", sparsity=0.5, structure="channels", latency=False)
        onnxprune.save(result, tmp_path / f"{name}.pruned.onnx", record=tmp_path / f"{name}.json")
    with pytest.raises(DataError, match="another file"):
        check(tmp_path / "a.onnx", tmp_path / "a.pruned.onnx", tmp_path / "b.json")


def test_kinds_narrow_what_goes() -> None:
    path = MODELS / "digits_transformer.onnx"
    heads = onnxprune.prune(path, sparsity=0.2, structure="channels", kinds=("heads",), latency=False)
    neurons = onnxprune.prune(path, sparsity=0.2, structure="channels", kinds=("neurons",), latency=False)
    assert heads.kept and neurons.kept
    assert not set(heads.kept) & set(neurons.kept)


def test_exclude_and_only(tmp_path: Path) -> None:
    model = conv_net(64)
    without = onnxprune.prune(model, sparsity=0.3, exclude=("w3",), ends="prune", latency=False)
    assert array(without.model, "w3").tobytes() == array(model, "w3").tobytes()
    alone = onnxprune.prune(model, sparsity=0.5, only=("w2",), latency=False)
    assert np.count_nonzero(array(alone.model, "w2") == 0) == round(0.5 * array(model, "w2").size)
    assert array(alone.model, "w1").tobytes() == array(model, "w1").tobytes()


def test_first_and_last_layers() -> None:
    model = conv_net(64)
    small = ("w1", "w3")  # each under 5 % of the weights, over 1 %
    prune = onnxprune.prune(model, sparsity=0.9, ends="prune", latency=False)
    keep = onnxprune.prune(model, sparsity=0.9, ends="keep", latency=False)
    assert all((array(prune.model, n) == 0).any() for n in small)
    assert all((array(keep.model, n) != 0).all() for n in small)


def test_dead_units_go_after_masking() -> None:
    result = onnxprune.prune(two_layers(64), sparsity=0.9, remove_dead=True, latency=False)
    assert result.dead > 0
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-6


def test_tied_embeddings_stay_one_tensor() -> None:
    model = graph(
        "agraph (int64[N,S] ids) => (float[N,S,20] y) {"
        "e = Gather(table, ids) a = MatMul(e, w1) b = Relu(a) c = MatMul(b, w2) d = Add(c, e)"
        "t = Transpose <perm = [1,0]> (table) y = MatMul(d, t) }",
        {"table": random(20, 8), "w1": random(8, 16), "w2": random(16, 8)},
    )
    result = onnxprune.prune(model, sparsity=0.4, structure="channels", latency=False)
    assert set(result.model.graph.initializers) == {"table", "w1", "w2"}
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-5


def test_half_precision() -> None:
    model = halved(two_layers(64))
    for structure in ("weights", "channels"):
        result = onnxprune.prune(model, sparsity=0.5, structure=structure, latency=False)
        assert result.verdict is not None and result.verdict.removed_vs_masked <= 1e-2
        assert array(result.model, "w1").dtype == np.float16


def test_a_metric_is_measured_before_and_after() -> None:
    path = MODELS / "digits_mlp.onnx"
    result = onnxprune.prune(path, sparsity=0.5, eval_data=path.with_suffix(".npz"), latency=False)
    assert result.verdict is not None and result.verdict.metric is not None
    assert result.verdict.metric.samples == 360
    assert result.verdict.metric.before > 0.97


def test_nothing_to_prune() -> None:
    model = graph("agraph (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", {})
    with pytest.raises(NothingToPrune, match="no Conv, Gemm, MatMul"):
        onnxprune.prune(model, sparsity=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.5}, "--sparsity"),
        ({"sparsity": 0.5, "structure": "nope"}, "--structure"),
        ({"sparsity": 0.5, "criterion": "nope"}, "--criterion: there is no criterion 'nope'"),
        ({"sparsity": 0.5, "kinds": ("nope",)}, "no units called 'nope'"),
        ({"sparsity": 0.5, "exclude": ("nope*",)}, "matches no weight"),
        ({"sparsity": 0.5, "speed": 3}, "--speed"),
        ({}, "--sparsity"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        onnxprune.prune(two_layers(), **settings)  # type: ignore[arg-type]


def test_without_verification_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []
    run = onnxruntime.InferenceSession.run

    def counted(self: onnxruntime.InferenceSession, *args: Any) -> Any:
        runs.append(self)
        return run(self, *args)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    result = onnxprune.prune(two_layers(), sparsity=0.5, verification=False)
    assert result.verdict is None and result.sparsity == 0.5
    assert not runs
    assert onnxprune.prune(two_layers(), sparsity=0.5, latency=False).verdict is not None and runs


@pytest.mark.parametrize("structure", ["weights", "channels"])
def test_weights_that_are_filled_at_run_time(structure: str) -> None:
    model = graph(
        "agraph (float[N,3,6,6] x) => (float[N,4] y) {"
        "w1 = ConstantOfShape <value = float[1] {0.5}> (s1) a = Conv(x, w1) b = GlobalAveragePool(a) c = Flatten(b)"
        "w2 = ConstantOfShape <value = float[1] {0.25}> (s2) y = Gemm <transB = 1> (c, w2) }",
        {"s1": np.array([16, 3, 3, 3]), "s2": np.array([4, 16])},
    )
    result = onnxprune.prune(model, sparsity=0.5, structure=structure, latency=False)
    assert result.sparsity == pytest.approx(0.5, abs=0.01)
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-6
