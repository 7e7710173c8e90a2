"""Steps: statistics made anew for each, the check before any number changes, recovery towards the first model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import array, conv_net, graph, random, two_layers

import onnxprune
from onnxprune import model_io
from onnxprune.data.calibration import Calibration
from onnxprune.errors import RecipeError
from onnxprune.pipeline import step
from onnxprune.pipeline.check import verify as check
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.rebuild import removed_atoms
from onnxprune.pipeline.record import load_record
from onnxprune.scoring import Evidence
from onnxprune.selection.units import OVERSHOOT
from onnxprune.structure.structure import Structure

MODELS = Path(__file__).resolve().parents[2] / "models"
MLP = MODELS / "digits_mlp.onnx"
DATA = {"x": random(128, 8)}


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of non-zero weights of each model that evidence was made of."""
    seen: list[int] = []
    make = Evidence.of

    def spy(structure: Structure, samples: Calibration, *others: Any) -> Evidence:
        tensors = [v.const_value for v in structure.model.graph.initializers.values()]
        seen.append(sum(int(np.count_nonzero(t.numpy())) for t in tensors if t is not None))
        return make(structure, samples, *others)

    monkeypatch.setattr(Evidence, "of", staticmethod(spy))
    return seen


@pytest.mark.parametrize("structure", ["weights", "channels"])
def test_statistics_are_made_anew_for_every_step(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    settings: dict[str, Any] = {"structure": structure, "criterion": "wanda", "latency": False}
    settings["round_to"] = "none"  # steps are small beside multiples of 8
    result = onnxprune.prune(two_layers(64), sparsity=0.6, iterations=3, calibration=DATA, **settings)
    assert len(seen) == 3 and seen[0] > seen[1] > seen[2]
    assert [step["step"] for step in result.steps] == [1, 2, 3]
    assert [step["wanted"] for step in result.steps] == pytest.approx([1 - 0.4 ** (t / 3) for t in (1, 2, 3)])
    assert [step["sparsity"] for step in result.steps] == pytest.approx([s["wanted"] for s in result.steps], abs=0.02)
    assert result.sparsity == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("iterations", [2, 5, 10])
def test_steps_smaller_than_a_cut_end_where_one_step_ends(iterations: int) -> None:
    """16 of 64 channels are more than a tenth of what goes; left out at every step, a layer would stay whole."""
    model = graph(
        "agraph (float[N,3,8,8] x) => (float[N,C,H,W] y) { a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Relu(c)"
        "e = Conv(d, w3) f = Relu(e) y = Conv(f, w4) }",
        {"w1": random(64, 3, 1, 1), "w2": random(64, 64, 1, 1), "w3": random(64, 64, 1, 1), "w4": random(4, 64, 1, 1)},
    )
    settings: dict[str, Any] = {"structure": "channels", "sparsity": 0.5, "verification": False, "latency": False}
    once, steps = (onnxprune.prune(model, iterations=n, **settings) for n in (1, iterations))
    assert [array(steps.model, w).shape for w in ("w1", "w2", "w3")] == [
        array(once.model, w).shape for w in ("w1", "w2", "w3")
    ]
    assert all(step["sparsity"] <= 0.5 + OVERSHOOT for step in steps.steps)


def test_retraining_renews_them_too_and_takes_samples_of_its_own_data(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    settings: dict[str, Any] = {"criterion": "taylor", "calibration_samples": 50, "verification": False}
    result = onnxprune.prune(
        MLP, sparsity=0.8, iterations=2, retrain={"steps": 2}, data=MODELS / "digits_train.npz", **settings
    )
    assert len(seen) == 2 and seen[0] > seen[1]
    assert result.recovered is None  # training data alone do not ask for recovery
    unlabelled = {"image": np.load(MODELS / "digits_train.npz")["image"][:100]}
    with pytest.raises(RecipeError, match="--criterion taylor needs labels"):
        onnxprune.prune(MLP, sparsity=0.8, retrain={"steps": 2}, data=unlabelled, **settings)


@pytest.mark.parametrize("structure", ["weights", "channels", "2:4", "channels+weights"])
def test_calibration_data_turn_recovery_on(structure: str) -> None:
    model = two_layers(64)
    settings: dict[str, Any] = {"structure": structure, "latency": False, "ends": "prune"}
    settings |= {} if structure == "2:4" else {"sparsity": 0.5}
    recovered = onnxprune.prune(model, calibration=DATA, **settings)
    plain = onnxprune.prune(model, calibration=DATA, recover="no", **settings)
    without = onnxprune.prune(model, **settings)
    if "channels" in structure:  # with data other units go; no survivor changed
        for name, axes in plain.kept.items():
            left = array(model, name)
            for axis, indices in axes.items():
                left = np.take(left, indices, axis=axis)
            now = array(plain.model, name)
            assert np.array_equal(np.where(now != 0, left, 0), now)
    else:
        assert model_io.to_bytes(plain.model) == model_io.to_bytes(without.model)
    done = recovered.recovered
    assert done is not None and plain.recovered is None
    chooses_anew = structure != "channels"
    assert done["methods"] == ["alps" if chooses_anew else "least-squares"] and done["samples"] == 128
    assert done["after"] < done["before"]
    assert any(step["applied"] for step in done["steps"])
    for name in ("w1", "w2"):
        a, b = array(recovered.model, name), array(plain.model, name)
        assert a.shape == b.shape and np.count_nonzero(a) == np.count_nonzero(b)
        assert chooses_anew or np.array_equal(a == 0, b == 0)
    assert not np.array_equal(array(recovered.model, "w2"), array(plain.model, "w2"))
    assert recovered.verdict is not None and plain.verdict is not None
    assert recovered.verdict.removed_vs_masked == plain.verdict.removed_vs_masked < 1e-5  # before any number changed


def test_the_check_comes_before_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("prove", "recover"):
        whole = getattr(step, name)
        monkeypatch.setattr(step, name, lambda *a, n=name, w=whole, **k: (order.append(n), w(*a, **k))[1])
    onnxprune.prune(two_layers(64), sparsity=0.5, structure="channels", iterations=2, calibration=DATA, latency=False)
    assert order == ["prove", "recover"] * 2


def test_steps_with_recovery_end_no_worse_than_one_step_with_it() -> None:
    data = MODELS / "digits_train.npz"
    settings: dict[str, Any] = {"structure": "channels", "sparsity": 0.8, "latency": False, "calibration_samples": 512}
    settings["round_to"] = "none"  # so that both end at the same widths
    one, three = (
        onnxprune.prune(MLP, iterations=n, calibration=data, eval_data=MLP.with_suffix(".npz"), **settings)
        for n in (1, 3)
    )
    assert one.recovered is not None and three.recovered is not None
    assert three.recovered["after"] < 1.25 * one.recovered["after"]
    assert all(r.verdict is not None and r.verdict.metric is not None for r in (one, three))


def test_the_record_of_steps_proves_the_file(tmp_path: Path) -> None:
    source, out, record = tmp_path / "net.onnx", tmp_path / "out.onnx", tmp_path / "record.json"
    model_io.save(conv_net(64), source)
    data = {"x": random(64, 3, 12, 12)}
    result = onnxprune.prune(
        source, sparsity=0.5, structure="channels", iterations=2, remove_dead=True, calibration=data, latency=False
    )
    onnxprune.save(result, out, record=record)
    found = check(source, out, record)
    assert found.cut > 0 and found.changed > 0
    removed = removed_atoms(prepare(model_io.load(source).clone()), load_record(record).kept)
    assert removed.any()
    figures = json.loads(record.read_text())["figures"]
    assert figures["steps"] == list(json.loads(json.dumps(result.steps)))


def test_the_same_data_and_seed_give_the_same_bytes() -> None:
    settings: dict[str, Any] = {"sparsity": 0.7, "criterion": "obc", "iterations": 2, "latency": False}
    settings |= {"calibration": DATA, "calibration_samples": 64}
    first, again = (model_io.to_bytes(onnxprune.prune(two_layers(), **settings).model) for _ in range(2))
    other = model_io.to_bytes(onnxprune.prune(two_layers(), seed=1, **settings).model)
    assert first == again != other


@pytest.mark.parametrize("allocation", ["erk", "sensitivity", "uniform"])
def test_what_went_in_one_step_stays_gone_in_the_next(allocation: str) -> None:
    settings: dict[str, Any] = {"allocation": allocation, "iterations": 3, "ends": "prune", "recover": "no"}
    result = onnxprune.prune(two_layers(64), sparsity=0.7, calibration=DATA, latency=False, **settings)
    zeros = sum(int((array(result.model, n) == 0).sum()) for n in ("w1", "w2"))
    assert zeros == result.gone == pytest.approx(0.7 * result.prunable, abs=2)


def test_recovery_where_nothing_can_be_recovered_says_so() -> None:
    path = MODELS / "digits_mlp.onnx"
    quantised = onnxprune.prune(path, sparsity=0.1, quantize="int8-dynamic", latency=False).model
    data = MODELS / "digits_train.npz"
    result = onnxprune.prune(
        quantised, sparsity=0.3, calibration=data, calibration_samples=64, recover="least-squares", latency=False
    )
    assert result.recovered is not None and not result.recovered["steps"]
    assert any("recovery" in note for note in result.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "channels", "allocation": "erk"}, "--allocation: erk is for single weights"),
        ({"allocation": "cost"}, "--allocation: cost is for whole units"),
        ({"structure": "channels+weights", "allocation": "cost"}, "--allocation: cost is for whole"),
        ({"allocation": "fair"}, "--allocation: there is no allocation of single weights 'fair'"),
        ({"recover": "wishes"}, "--recover: there is no recovery method 'wishes': choose one of least-squares"),
        ({"recover": "least-squares"}, "--recover least-squares needs inputs: give --calibration"),
        ({"schedule": "steep", "iterations": 2}, "--schedule: there is no schedule 'steep'"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        onnxprune.prune("nowhere.onnx", sparsity=0.5, **settings)


def test_weights_that_training_replaces_are_not_recovered() -> None:
    settings: dict[str, Any] = {"sparsity": 0.5, "survivors": "reinit", "retrain": {"steps": 1}, "latency": False}
    data = {"image": random(64, 1, 8, 8), "label": np.zeros(64, int)}
    with pytest.raises(RecipeError, match="--recover: --survivors reinit"):
        onnxprune.prune(MLP, data=data, recover="least-squares", **settings)
    assert onnxprune.prune(MLP, data=data, calibration=data, **settings).recovered is None
    with pytest.raises(RecipeError, match="--recover: with --prune-every"):
        onnxprune.prune(MLP, sparsity=0.5, data=data, recover="bias", prune_every=1, retrain={"steps": 4})


def test_retraining_starts_from_recovered_weights() -> None:
    settings: dict[str, Any] = {"sparsity": 0.8, "retrain": {"steps": 1, "learning_rate": 1e-9}, "latency": False}
    data = MODELS / "digits_train.npz"
    result = onnxprune.prune(MLP, data=data, calibration=data, structure="channels", **settings)
    assert result.recovered is not None and result.recovered["after"] < result.recovered["before"]
    assert result.verdict is not None and result.verdict.removed_vs_masked < 1e-5


def test_masks_follow_zeros_that_recovery_put_elsewhere() -> None:
    settings: dict[str, Any] = {"sparsity": 0.8, "iterations": 2, "retrain": {"steps": 1}, "criterion": "random"}
    data, model = {"x": random(64, 8), "label": np.arange(64) % 4}, two_layers()
    result = onnxprune.prune(model, data=data, calibration=data, recover="obc", verification=False, **settings)
    plain = onnxprune.prune(model, data=data, recover="no", verification=False, **settings)
    assert result.recovered is not None and any(step["applied"] for step in result.recovered["steps"])
    ours, others = (array(r.model, "w1") == 0 for r in (result, plain))
    assert result.sparsity == pytest.approx(0.8, abs=0.01) and not np.array_equal(ours, others)


def test_merging_needs_no_data() -> None:
    result = onnxprune.prune(two_layers(64), sparsity=0.5, structure="channels", recover="merge", latency=False)
    assert result.recovered is not None and result.recovered["samples"] == 0
    with pytest.raises(RecipeError, match="--recover merge,bias needs inputs"):
        onnxprune.prune("nowhere.onnx", sparsity=0.5, recover="merge,bias")
