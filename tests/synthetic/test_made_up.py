"""Inputs made up from a model: they fit it, look like what it was trained on, and leave a better model than none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from pydantic.fields import FieldInfo

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.data.batches import batches
from onnxprune.recipe import file as recipe_file
from onnxprune.synthetic.draw import draw, setting_of
from onnxprune.synthetic.noise import amplitudes, channel_axis, coloured, signal
from onnxprune.synthetic.samples import made_up
from tests.command_line import run
from tests.small_models import conv_net, graph, random, set_array, two_layers

MODELS = Path(__file__).parents[2] / "models"


# --- noise


@pytest.mark.parametrize("extents", [(64, 64), (33, 40), (257,), (8, 9, 10)])
@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_noise_with_a_spectrum_has_the_variance_of_white_noise(extents: tuple[int, ...], slope: float) -> None:
    white = np.random.default_rng(0).standard_normal((400, 1, *extents))
    assert np.mean(signal(white, amplitudes(extents, np.full(400, slope))) ** 2) == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_the_amplitude_falls_with_the_frequency_as_the_slope_says(slope: float) -> None:
    made = signal(np.random.default_rng(0).standard_normal((300, 1, 64)), amplitudes((64,), np.full(300, slope)))
    mean = np.abs(np.fft.rfft(made[:, 0])).mean(axis=0)
    assert np.log2(mean[4] / mean[16]) / 2 == pytest.approx(slope, abs=0.1)


def test_channels_of_a_picture_go_together() -> None:
    made = coloured(np.random.default_rng(0).standard_normal((1, 3, 20_000)))
    assert np.corrcoef(made[0])[np.triu_indices(3, 1)] == pytest.approx([0.9] * 3, abs=0.02)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 3, 8, 8), 1), ((5, 8, 8, 3), 3), ((5, 1, 16000), 1), ((5, 80, 300), None), ((5, 3), None)],
)
def test_a_signal_has_few_channels(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis


# --- what goes into the graph


@pytest.mark.parametrize(
    ("text", "weights", "wanted"),  # the deviation and the mean of what goes in
    [
        ("a = Sub(x, c) b = Div(a, d)", {"c": 127.0, "d": 128.0}, (128.0, 127.0)),
        ("a = Div(x, d) b = Add(a, c)", {"c": -0.5, "d": 255.0}, (255.0, 127.5)),
        ("a = Relu(x) b = Mul(a, d)", {"d": 4.0}, (1.0, 0.0)),
    ],
)
def test_a_normalisation_inside_the_graph_is_undone(
    text: str, weights: dict[str, float], wanted: tuple[float, float]
) -> None:
    model = graph(
        f"g (float[N,3] x) => (float[N,2] y) {{ {text} y = MatMul(b, w) }}",
        {**{name: np.float32(number) for name, number in weights.items()}, "w": random(3, 2)},
    )
    values = np.asarray(made_up(model, 512, 0, gradients=False).inputs["x"])
    assert (values.std(), values.mean() / wanted[0]) == pytest.approx(
        (wanted[0], wanted[1] / wanted[0]), abs=0.1, rel=0.1
    )


def test_what_differs_by_channel_is_undone_by_channel() -> None:
    mean, deviation = np.float32([1, 2, 3]).reshape(1, 3, 1, 1), np.float32([4, 5, 6]).reshape(1, 3, 1, 1)
    text = "g (float[N,3,8,8] x) => (float[N,2,8,8] y) { a = Sub(x, m) b = Div(a, d) y = Conv(b, w) }"
    model = graph(text, {"m": mean, "d": deviation, "w": random(2, 3, 1, 1)})
    values = made_up(model, 300, 0, gradients=False).inputs["x"]
    assert values.mean(axis=(0, 2, 3)) == pytest.approx([1, 2, 3], abs=1.0)
    assert values.std(axis=(0, 2, 3)) == pytest.approx([4, 5, 6], rel=0.15)


def test_ids_lie_within_their_table_and_sequences_are_not_short() -> None:
    text = """g (int64[N,T] ids, int64[N,T] attention_mask) => (float[N,T,4] y) {
        e = Gather(table, ids) m = Cast <to = 1> (attention_mask) a = Unsqueeze(m, axis) f = Mul(e, a)
        y = MatMul(f, w) }"""
    model = graph(text, {"table": random(50, 8), "w": random(8, 4), "axis": np.int64([-1])})
    made = made_up(model, 40, 0)
    assert made.inputs["ids"].shape == (40, 32) and made.labels is None
    assert made.inputs["ids"].min() >= 0 and 45 < made.inputs["ids"].max() < 50
    assert (made.inputs["attention_mask"] == 1).all()


def test_ids_that_come_as_floats_are_ids() -> None:
    text = "g (float[N,6] x) => (float[N,6,4] y) { i = Cast <to = 7> (x) e = Gather(table, i) y = MatMul(e, w) }"
    made = made_up(graph(text, {"table": random(50, 8), "w": random(8, 4)}), 40, 0).inputs["x"]
    assert made.dtype == np.float32 and (made == np.floor(made)).all() and made.min() >= 0 and 45 < made.max() < 50


def test_a_model_of_fixed_batch_gets_whole_batches() -> None:
    text = "g (float[4,3,8,8] x) => (float[4,2] y) { a = Conv(x, w) b = GlobalAveragePool(a) y = Flatten(b) }"
    model = graph(text, {"w": random(2, 3, 3, 3)})
    drawn = draw(model, setting_of(model, 0), 10, 0)
    assert drawn.samples.count == 12 and len(batches(model, drawn.samples)) == 3


# --- fitted to the model


def test_statistics_of_batch_normalization_are_matched() -> None:
    pytest.importorskip("torch")
    model = conv_net(8)
    real = 3 + 5 * random(64, 3, 12, 12)
    before = _of_a(model, real)
    set_array(model, "mean", before.mean(axis=(0, 2, 3)))
    set_array(model, "var", before.var(axis=(0, 2, 3)))
    plain, fitted = (made_up(model, 128, 0, gradients=g) for g in (False, True))
    assert "the statistics of BatchNormalization" in fitted.made_up and "fitted" not in plain.made_up
    deviation = before.std(axis=(0, 2, 3))
    gaps = [
        np.abs((_of_a(model, np.asarray(c.inputs["x"])).mean(axis=(0, 2, 3)) - before.mean(axis=(0, 2, 3))) / deviation)
        for c in (plain, fitted)
    ]
    assert gaps[1].mean() < 0.3 * gaps[0].mean()


FIXED = "g (float[1,3,8,8] x) => (float[1,2] y) { c = Conv(x, w) p = GlobalAveragePool(c) y = "


@pytest.mark.parametrize("end", ["Flatten(p) }", "Reshape(p, shape) }"])
def test_samples_of_a_fixed_batch_are_matched_together_where_they_do_not_see_each_other(end: str) -> None:
    pytest.importorskip("torch")
    from onnxprune.synthetic.match import CHUNK, view_of

    constants = {"shape": np.int64([1, 2])} if "shape" in end else {}
    model = graph(FIXED + end, {"w": 9 * random(2, 3, 3, 3), **constants})
    view = view_of(model, draw(model, setting_of(model, 0), 64, 0))
    assert view.chunk == (1 if constants else CHUNK)
    assert bool(view.tells) != bool(constants)


def test_where_no_gradient_comes_through_they_stay_noise() -> None:
    pytest.importorskip("torch")
    text = """g (float[N,8] x) => (float[N,4] y) {
        i = Cast <to = 7> (x) f = Cast <to = 1> (i) h = Mul(f, scale) y = MatMul(h, w) }"""
    model = graph(text, {"w": 9 * random(8, 4), "scale": np.float32(9)})
    made, plain = made_up(model, 64, 0), made_up(model, 64, 0, gradients=False)
    assert made.made_up == plain.made_up == "random" and made.digest == plain.digest


def _of_a(model: ir.Model, values: np.ndarray) -> np.ndarray:
    """What the BatchNormalization reads."""
    twin = model.clone()
    twin.graph.outputs.append(next(node for node in twin.graph if node.op_type == "Conv").outputs[0])
    return np.asarray(runtime.run(runtime.make_session(twin), {"x": values.astype(np.float32)})["a"])


def test_made_up_pictures_are_recognised_as_many_classes() -> None:
    pytest.importorskip("torch")
    model = model_io.load_any(MODELS / "digits_mlp.onnx")
    session = runtime.make_session(model)
    sure, classes = [], []
    for gradients in (False, True):
        made = made_up(model, 128, 0, gradients=gradients)
        scores = runtime.run(session, dict(made.inputs))["logits"].astype(np.float64)
        sure.append(float(np.sort(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))[:, -1].mean()))
        classes.append(np.bincount(scores.argmax(1), minlength=10).min())
    assert sure[1] > max(0.97, sure[0])
    assert classes[1] >= 4 > classes[0]  # noise alone is of some classes only


def test_the_same_seed_gives_the_same_inputs_and_another_gives_others() -> None:
    first, again, other = (made_up(two_layers(), 64, seed).digest for seed in (0, 0, 1))
    assert first == again != other


def test_without_pytorch_they_stay_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    assert "with PyTorch they would be better" in made_up(conv_net(8), 64, 0).made_up


# --- a run


def test_a_run_on_made_up_inputs_leaves_more_than_one_without() -> None:
    pytest.importorskip("torch")
    path = MODELS / "digits_mlp.onnx"
    held = np.load(MODELS / "digits_mlp.npz")
    accuracy = {}
    for calibration in (None, "synthetic"):
        settings = {"structure": "channels", "sparsity": 0.7, "latency": False}
        result = onnxprune.prune(path, calibration=calibration, calibration_samples=128, **settings)
        scores = runtime.run(runtime.make_session(result.model), {"image": held["image"]})["logits"]
        accuracy[calibration] = float((scores.argmax(1) == held["label"]).mean())
        assert ("made up" in " ".join(result.notes)) == (calibration is not None)
        assert ("made up" in json.dumps(result.record().figures)) == (calibration is not None)
    assert accuracy["synthetic"] > accuracy[None] + 0.05


def test_a_ruined_model_points_to_it() -> None:
    result = onnxprune.prune(MODELS / "digits_resnet.onnx", structure="channels", sparsity=0.7, latency=False)
    assert "--calibration synthetic" in " ".join(result.notes)


def test_every_command_takes_the_word(tmp_path: Path) -> None:
    model, out = MODELS / "digits_mlp.onnx", tmp_path / "out.onnx"
    few = ["--calibration", "synthetic", "--calibration-samples", "16"]
    recipe = tmp_path / "recipe.toml"
    assert run(model, "-o", out, "--sparsity", "0.5", "--quantize", "int8", *few, "--save-recipe", recipe) == 0
    assert 'calibration = "synthetic"' in recipe.read_text()
    names = ("calibration", "model", "output")
    read = recipe_file.read(recipe, flags=dict.fromkeys(names, FieldInfo(annotation=Path)), paths=names)
    assert read.settings["calibration"] == "synthetic"
    assert run("run", recipe, "--force") == 0
    assert run("sensitivity", model, "--calibration", "synthetic", "--levels", "0.5") == 0


def test_labels_cannot_be_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sparsity", "0.5", "--criterion", "taylor", "--calibration", "synthetic"]
    assert run(MODELS / "digits_mlp.onnx", "-o", tmp_path / "out.onnx", *arguments) == 2
    assert "labels" in capsys.readouterr().err and not list(tmp_path.iterdir())
