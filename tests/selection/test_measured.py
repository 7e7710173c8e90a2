"""Units divided by measured effect: the closed form, the convex curve, and what it is worth on a real network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.data.calibration import read_calibration
from onnxprune.model_io import load_any
from onnxprune.pipeline.prepare import prepare
from onnxprune.runtime.statistics import Moments
from onnxprune.scoring.evidence import Evidence
from onnxprune.selection.measured import Curve, convex, deeper, effect_samples, power_of, refit

MODELS = Path(__file__).parents[2] / "models"


def moments(a: np.ndarray) -> Moments:
    """Those of rows [rows, K]."""
    none = np.zeros((1, 0))
    return Moments(len(a), a.sum(0)[None], none, (a.T @ a)[None], np.zeros((1, a.shape[1], 0)), none)


def test_what_is_left_makes_up_for_an_input_that_goes() -> None:
    """x2 = 2 x1: without x2 the weight of x1 grows from 1 to 1 + 2 x 3 = 7, as far as damping allows."""
    x = np.array([[1.0, 2.0], [-1.0, -2.0]])
    fitted, change = refit(np.array([[[1.0, 3.0]]]), moments(x), np.array([0]), with_bias=True)
    # (G_11 + d)^-1 (W G_:1 + d w_1) with G_11 = 1, G_21 = 2 and d = .01 x mean(1, 4)
    assert fitted[0, 0, 0] == pytest.approx((1 + 3 * 2 + 0.025) / 1.025) and fitted[0, 0, 1] == 0
    assert change[0, 0] == pytest.approx(0)


def test_the_bias_takes_over_the_mean_of_what_goes() -> None:
    """An input that is always 5 goes: the bias grows by 3 x 5."""
    x = np.array([[1.0, 5.0], [-1.0, 5.0]])
    fitted, change = refit(np.array([[[2.0, 3.0]]]), moments(x), np.array([0]), with_bias=True)
    assert fitted[0, 0].tolist() == pytest.approx([2, 0]) and change[0, 0] == pytest.approx(15)


def test_a_curve_is_made_convex() -> None:
    """Of effects 0, 4, 3, 9 after 1, 2 and 3 units the second point lies above the line from the first to the third."""
    curve = convex(np.array([4, 3, 2, 1]), np.array([0.0, 4.0, 3.0, 9.0]))
    assert curve.counts.tolist() == [4, 2, 1] and curve.effects.tolist() == [0, 3, 9]
    assert curve.at(3) == 1.5 and curve.loss(3, 1) == 7.5


def test_below_the_last_level_a_curve_goes_on_as_a_power_of_the_count() -> None:
    """From 16 to 8 units the effect grows by 4 = 2^2, so it does with each half: by 2 at least, by 2^2.5 at most."""
    counts = np.array([32, 16, 8])
    assert deeper(Curve(counts, np.array([0.0, 0.1, 0.4]))) == ([4, 2, 1], pytest.approx([1.6, 6.4, 25.6]))
    assert deeper(Curve(counts, np.array([0.0, 0.4, 0.4])))[1] == pytest.approx([0.8, 1.6, 3.2])
    assert deeper(Curve(counts, np.array([0.0, 0.0, 0.4])))[1][0] == pytest.approx(0.4 * 2**2.5)
    assert deeper(Curve(np.array([2, 1]), np.array([0.0, 0.4]))) == ([], [])
    assert deeper(Curve(np.array([1]), np.array([0.0])))[0] == [0]


def test_effects_are_added_to_the_power_at_which_they_come_to_what_cuts_do_together() -> None:
    """3 and 4 come to 7 as they are, to more where each is the worse for the other, to less where they overlap."""
    assert power_of([[3.0, 4.0]], [7.0]) == pytest.approx(1, abs=0.01)
    for power in (0.6, 0.8, 1.3):
        together = [(3**power + 4**power) ** (1 / power), (1 + 2**power) ** (1 / power)]
        assert power_of([[3.0, 4.0], [1.0, 2.0]], together) == pytest.approx(power, abs=0.01)
    assert power_of([[3.0, 4.0]], [1000.0]) == pytest.approx(0.5, abs=0.01)
    assert power_of([[3.0, 4.0]], [1.0]) == pytest.approx(1.5, abs=0.01)


def test_effects_that_tell_nothing_are_added_as_they_are() -> None:
    for apart, together in (([[3.0]], [5.0]), ([[0.0, 0.0]], [0.0]), ([], []), ([[1.0, np.inf]], [2.0])):
        assert power_of(apart, together) == 1


def test_with_calibration_data_units_go_by_their_measured_effect() -> None:
    """The default with data keeps a point more than magnitude divided by cost, both recovered on the same inputs."""
    given = {"calibration": MODELS / "digits_train.npz", "eval_data": MODELS / "digits_resnet.npz", "latency": False}
    settings = {"sparsity": 0.85, "structure": "channels", "calibration_samples": 256}
    model = MODELS / "digits_resnet.onnx"
    plain = onnxprune.prune(model, criterion="magnitude", allocation="cost", **settings, **given)
    found = onnxprune.prune(model, **settings, **given)
    assert plain.verdict is not None and plain.verdict.metric is not None
    assert found.verdict is not None and found.verdict.metric is not None
    assert found.verdict.metric.after > plain.verdict.metric.after + 0.005
    assert found.verdict.metric.after > 0.97


def test_high_effort_measures_on_four_times_the_samples() -> None:
    """40 groups at six levels, half of the network a run on average: 8 samples are 1,000 runs, 33 are 4,000."""
    structure = prepare(load_any(MODELS / "digits_resnet.onnx"))
    evidence = Evidence.of(structure, read_calibration(MODELS / "digits_train.npz", structure.model, 256, 0))
    assert effect_samples(structure, 40, evidence, "low").count == 8
    assert effect_samples(structure, 40, evidence, "high").count == 33
