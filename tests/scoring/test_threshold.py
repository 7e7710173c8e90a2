"""Han's threshold: quality parameter times the standard deviation of the layer."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import RecipeError
from onnxprune.scoring.threshold import threshold_masks


def test_weights_below_quality_times_deviation_go() -> None:
    weight = np.array([[3.0, -1.0], [1.0, -3.0]])  # standard deviation sqrt(5) = 2.236
    assert threshold_masks({"w": weight}, 1.0)["w"].tolist() == [[True, False], [False, True]]
    assert threshold_masks({"w": weight}, 0.4)["w"].all()


def test_each_layer_has_its_own_deviation_and_may_have_its_own_quality() -> None:
    weights = {"small": np.array([0.01, 0.03, -0.03]), "large": np.array([1.0, 3.0, -3.0])}
    masks = threshold_masks(weights, 1.0)
    assert masks["small"].tolist() == masks["large"].tolist() == [False, True, True]
    assert threshold_masks(weights, {"small": 0.0, "large": 1.0})["small"].all()


def test_of_a_pruned_layer_the_survivors_alone_count_and_the_rest_stays_pruned() -> None:
    weight = np.array([0.0, 0.0, 0.0, 1.0, 3.0, -3.0])
    kept = weight != 0
    deviation = np.std([1.0, 3.0, -3.0])
    mask = threshold_masks({"w": weight}, 0.9, {"w": kept})["w"]
    assert mask.tolist() == [False, False, False, False, True, True]
    assert 0.9 * deviation < 3


@pytest.mark.parametrize("quality", [-1.0, {}])
def test_a_wrong_quality_is_refused(quality: float | dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="quality parameter"):
        threshold_masks({"w": np.ones(3)}, quality)
