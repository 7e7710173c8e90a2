"""Methods of pruning through the whole run: structure, criterion, allocation, and what is left as it was."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import zoo
from small_models import array, graph, random, two_layers

import onnxprune
from onnxprune.data.calibration import read_calibration
from onnxprune.errors import DataError, NothingToPrune, OnnxPruneError, RecipeError
from onnxprune.scoring import criteria

MODELS = Path(__file__).resolve().parents[2] / "models"
CALIBRATION = MODELS / "digits_train.npz"
QUICK: dict[str, Any] = {"latency": False, "recover": "no"}


def operators(inputs: int = 8) -> ir.Model:
    """Every operator that N:M fits: Conv, Gemm both ways round, MatMul; the first Conv reads `inputs` channels."""
    return graph(
        f"agraph (float[N,{inputs},5,5] x) => (float[N,6] y) {{"
        "a = Conv(x, first) b = Relu(a) c = Conv <group = 2> (b, grouped) d = GlobalAveragePool(c) e = Flatten(d)"
        "f = Gemm <transB = 1> (e, rows) g = Relu(f) h = Gemm(g, columns) i = Relu(h) y = MatMul(i, product) }",
        {
            "first": random(16, inputs, 3, 3), "grouped": random(24, 8, 3, 3), "rows": random(12, 24),
            "columns": random(12, 20), "product": random(20, 6),
        },
    )  # fmt: skip


REDUCTION = {"first": 1, "grouped": 1, "rows": 1, "columns": 0, "product": 0}


def groups_of(weight: npt.NDArray[Any], axis: int, m: int) -> list[npt.NDArray[Any]]:
    """Every m consecutive entries along an axis, found by loops."""
    found = []
    others = [range(n) for i, n in enumerate(weight.shape) if i != axis]
    for place in itertools.product(*others):
        for start in range(0, weight.shape[axis], m):
            found.append(weight[(*place[:axis], slice(start, start + m), *place[axis:])])
    return found


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4)])
@pytest.mark.parametrize("recover", ["no", "least-squares"])
def test_every_group_of_the_file_keeps_n_of_m(n: int, m: int, recover: str, tmp_path: Path) -> None:
    data = {"x": random(64, 8, 5, 5)}
    result = onnxprune.prune(
        operators(), structure=f"{n}:{m}", ends="prune", calibration=data, recover=recover, latency=False
    )
    onnxprune.save(result, tmp_path / "out.onnx")
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for name, axis in REDUCTION.items():
        assert all(np.count_nonzero(group) == n for group in groups_of(tensors[name], axis, m))
    assert result.sparsity == pytest.approx(1 - n / m) and not result.untouched


def test_a_layer_that_a_pattern_does_not_fit_stays_dense_and_is_named() -> None:
    model = operators(inputs=3)
    result = onnxprune.prune(model, structure="2:4", ends="prune", **QUICK)
    assert result.untouched == {"first": "its reduction axis has 3 entries, no multiple of 4"}
    assert array(result.model, "first").tobytes() == array(model, "first").tobytes()
    assert any("first: its reduction axis has 3 entries, no multiple of 4" in note for note in result.notes)
    assert result.figures["untouched"] == dict(result.untouched)
    with pytest.raises(NothingToPrune, match="fits no layer .*3 entries"):
        onnxprune.prune(model, structure="2:4", only=("first",), **QUICK)


def test_small_ends_that_a_pattern_spares_are_named_too() -> None:
    text = "agraph (float[N,4] x) => (float[N,4] y) { p = MatMul(x, a) q = Relu(p) r = MatMul(q, b) s = Relu(r)"
    for width, named in ((64, set()), (500, {"a", "c"})):
        weights = {"a": random(4, width), "b": random(width, width), "c": random(width, 4)}
        result = onnxprune.prune(graph(text + " y = MatMul(s, c) }", weights), structure="2:4", **QUICK)
        assert set(result.untouched) == named


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_blocks_go_as_one(allocation: str) -> None:
    result = onnxprune.prune(operators(), structure="block:1x4", sparsity=0.5, allocation=allocation, **QUICK)
    assert result.sparsity == pytest.approx(0.5, abs=0.01)
    for name, axis in REDUCTION.items():
        zeros = [np.count_nonzero(group == 0) for group in groups_of(array(result.model, name), axis, 4)]
        assert set(zeros) <= {0, 4}
        if allocation == "uniform":
            assert np.mean(zeros) / 4 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("structure", "sparsity"), [("channels+weights", 0.6), ("channels+2:4", 0.7)])
def test_a_mix_removes_units_and_zeroes_in_what_they_leave(structure: str, sparsity: float) -> None:
    model = two_layers(256)
    result = onnxprune.prune(model, structure=structure, sparsity=sparsity, ends="prune", **QUICK)
    assert result.sparsity == pytest.approx(sparsity, abs=0.01)
    weights = [array(result.model, name) for name in ("w1", "w2")]
    before = sum(array(model, name).size for name in ("w1", "w2"))
    left, zeros = sum(w.size for w in weights), sum(int((w == 0).sum()) for w in weights)
    assert before - left + zeros == result.gone
    by_units = 0.5 * 0.6 if structure.endswith("weights") else 1 - (1 - 0.7) / 0.5
    assert (before - left) / before == pytest.approx(by_units, abs=0.04)
    assert result.kept and result.verdict is not None and result.verdict.removed_vs_masked < 1e-5
    if structure.endswith("2:4"):  # kept counts are multiples of 4, which the pattern fits
        assert all(np.count_nonzero(g) == 2 for g in groups_of(array(result.model, "w2"), 0, 4))


def test_the_share_of_units_in_a_mix() -> None:
    settings: dict[str, Any] = {"structure": "channels+weights", "sparsity": 0.6, **QUICK}
    few, many = (onnxprune.prune(two_layers(64), unit_share=share, **settings) for share in (0.2, 0.8))
    assert array(few.model, "w1").shape[1] > array(many.model, "w1").shape[1]
    assert few.sparsity == pytest.approx(many.sparsity, abs=0.001)


# --- criteria


@pytest.mark.parametrize("structure", ["weights", "channels"])
@pytest.mark.parametrize("name", criteria())
def test_every_criterion_prunes_or_says_why_not(name: str, structure: str) -> None:
    settings: dict[str, Any] = {"criterion": name, "structure": structure, "sparsity": 0.5, **QUICK}
    data = {"calibration": CALIBRATION, "calibration_samples": 32}
    for model in ("digits_mlp", "digits_resnet") if name not in ("gates", "obc") else ("digits_mlp",):
        path = MODELS / f"{model}.onnx"
        if ("weights" if structure == "weights" else "units") not in criteria()[name].scores:
            with pytest.raises(RecipeError, match=f"--criterion {name} scores (whole units|residual blocks), not"):
                onnxprune.prune(path, **settings, **data)
        elif (name, model) == ("bn-scale", "digits_mlp") or name == "routing":
            missing = "no BatchNormalization" if name == "bn-scale" else "no router"
            with pytest.raises(RecipeError, match=f"--criterion {name} can score no units, .* {missing}"):
                onnxprune.prune(path, **settings, **({} if name == "bn-scale" else data))
        else:
            result = onnxprune.prune(path, verification=False, **settings, **data)
            assert result.sparsity == pytest.approx(0.5, abs=0.01) and not result.notes


@pytest.mark.parametrize("name", [n for n, c in criteria().items() if c.needs != "nothing"])
def test_missing_data_are_asked_for_before_any_work(name: str) -> None:
    structure = "channels" if "units" in criteria()[name].scores else "blocks"
    settings: dict[str, Any] = {"sparsity": 0.5, "structure": structure, "criterion": name}
    with pytest.raises(RecipeError, match=f"--criterion {name} needs inputs.*: give --calibration"):
        onnxprune.prune("nowhere.onnx", **settings)
    if criteria()[name].needs != "calibration":
        with pytest.raises(RecipeError, match=f"--criterion {name} needs inputs with their labels, .*no array 'label'"):
            onnxprune.prune(MODELS / "digits_mlp.onnx", calibration={"x": random(8, 1, 8, 8)}, **settings)


def test_what_a_criterion_cannot_score_stays_and_is_named() -> None:
    settings: dict[str, Any] = {"structure": "channels", "sparsity": 0.4, "criterion": "activation", **QUICK}
    data = {"calibration": CALIBRATION, "calibration_samples": 32}
    result = onnxprune.prune(MODELS / "digits_transformer.onnx", **settings, **data)
    assert result.sparsity == pytest.approx(0.4, abs=0.01)
    assert result.untouched and all("(head-size)" in name for name in result.untouched)
    assert any("no layer that reads these units can be measured" in note for note in result.notes)


def test_weights_that_a_criterion_cannot_score_stay_and_are_named() -> None:
    model = graph(
        "agraph (float[N,3,6,6] x) => (float[N,4] y) { a = ConvTranspose(x, up) b = Relu(a)"
        "c = GlobalAveragePool(b) d = Flatten(c) y = MatMul(d, w) }",
        {"up": random(3, 16, 3, 3), "w": random(16, 4)},
    )
    data = {"x": random(16, 3, 6, 6)}
    result = onnxprune.prune(model, sparsity=0.5, criterion="wanda", calibration=data, **QUICK)
    assert set(result.untouched) == {"up"} and "cannot be measured" in result.untouched["up"]
    assert (array(result.model, "up") != 0).all() and np.count_nonzero(array(result.model, "w")) == 32
    assert "asked for 50.0%, got 6.5%" in result.notes[0]
    with pytest.raises(RecipeError, match="--criterion wanda can score no weight, as 'up'"):
        onnxprune.prune(model, sparsity=0.1, criterion="wanda", calibration=data, only=("up",), **QUICK)


# --- allocation


def lopsided() -> ir.Model:
    """Two branches of equal size that are added: one of large numbers, one of small ones."""
    weights = {"a": random(8, 40), "b": random(40, 4), "c": random(8, 40, seed=1) * 0.05, "d": random(40, 4, seed=1)}
    return graph(
        "agraph (float[N,8] x) => (float[N,4] y) { p = MatMul(x, a) q = Relu(p) r = MatMul(q, b)"
        "s = MatMul(x, c) t = Relu(s) u = MatMul(t, d) y = Add(r, u) }",
        {name: w.astype(np.float32) for name, w in weights.items()},
    )


def test_uniform_and_sensitivity_divide_single_weights() -> None:
    data = {"x": random(64, 8)}
    shares = {}
    for allocation in ("uniform", "sensitivity"):
        result = onnxprune.prune(
            lopsided(), sparsity=0.6, allocation=allocation, ends="prune", calibration=data, **QUICK
        )
        assert result.sparsity == pytest.approx(0.6, abs=0.01)
        shares[allocation] = {n: float((array(result.model, n) == 0).mean()) for n in "abcd"}
    assert set(shares["uniform"].values()) == {0.6}
    assert shares["sensitivity"]["c"] > 0.8 and shares["sensitivity"]["d"] > 0.8
    assert shares["sensitivity"]["b"] < 0.6 and shares["sensitivity"]["a"] < 0.6


def test_uniform_and_sensitivity_divide_units() -> None:
    data = {"x": random(64, 8)}
    widths = {}
    for allocation in ("global", "uniform", "sensitivity"):
        settings: dict[str, Any] = {"structure": "channels", "sparsity": 0.5, "allocation": allocation}
        result = onnxprune.prune(lopsided(), calibration=data, **settings, **QUICK)
        assert result.sparsity == pytest.approx(0.5, abs=0.02)
        widths[allocation] = array(result.model, "a").shape[1], array(result.model, "c").shape[1]
        assert ("sensitivity" in result.steps[0]) == (allocation == "sensitivity")
    assert widths["uniform"] == (20, 20)
    assert widths["sensitivity"][0] > 30 and widths["sensitivity"][1] < 10


def test_a_scan_needs_inputs() -> None:
    with pytest.raises(RecipeError, match="--allocation sensitivity .* give --calibration"):
        onnxprune.prune("nowhere.onnx", sparsity=0.5, allocation="sensitivity")


# --- kinds of units, on whole architectures


@pytest.mark.skipif(not zoo.HAS_TORCH, reason="the architectures are exported with PyTorch, which is not installed")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("mixture_of_experts", "heads"), ("mixture_of_experts", "experts"), ("lstm", "hidden"), ("digits", "head-size")],
)
def test_units_of_every_kind_go_in_steps(name: str, kind: str) -> None:
    model, data = MODELS / "digits_transformer.onnx", CALIBRATION
    if name != "digits":
        model, data = zoo.export(name, "legacy", 17), zoo.feeds(name, batch=8)
    settings: dict[str, Any] = {"structure": "channels", "sparsity": 0.4, "kinds": (kind,), "latency": False}
    settings |= {"iterations": 2, "allow_inexact": kind == "experts", "round_to": "none", "calibration_samples": 16}
    recover = "least-squares" if name == "lstm" else "no"  # many layers take long
    result = onnxprune.prune(model, calibration=data, recover=recover, **settings)
    assert result.kept and len(result.steps) == 2 and (result.recovered is not None) == (name == "lstm")
    assert result.recovered is None or result.recovered["after"] <= result.recovered["before"]
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"z": random(8, 8), "w": random(8, 8)}, "no array 'x'"),
        ({"x": random(8, 9)}, r"have shape \[N, 9\]; the model wants"),
        ({"x": random(8, 8), "label": np.zeros(7, int)}, "different numbers of samples"),
        ({"x": random(0, 8)}, "empty"),
        ({"x": np.full((8, 8), "a")}, "are of type <U1; the model wants float32"),
    ],
)
def test_calibration_data_that_do_not_fit(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        onnxprune.prune(two_layers(), sparsity=0.5, calibration=data)


def test_calibration_data_are_drawn_by_the_seed_and_may_have_any_name() -> None:
    data = {"anything": random(50, 8).astype(np.float64), "label": np.arange(50)}
    model = two_layers()
    first, again, other = (read_calibration(data, model, 20, seed) for seed in (0, 0, 1))
    assert first.inputs["x"].dtype == np.float32 and len(first.inputs["x"]) == 20
    assert first.labels is not None and again.labels is not None and other.labels is not None
    assert first.labels.tolist() == again.labels.tolist() != other.labels.tolist()
    assert np.array_equal(first.inputs["x"], random(50, 8)[first.labels])
    assert first.digest == again.digest != other.digest


def test_a_criterion_of_gradients_without_pytorch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if name == "torch" else missing(name, *at))
    monkeypatch.delitem(sys.modules, "onnxprune.bridge", raising=False)
    with pytest.raises(OnnxPruneError, match="pip install 'onnxprune.retrain.'"):
        onnxprune.prune(two_layers(), sparsity=0.5, criterion="synflow")
