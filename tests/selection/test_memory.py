"""What is held while weights are chosen: one tensor and bits, however many tensors there are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from small_models import graph, random

from onnxprune.pipeline.prepare import prepare
from onnxprune.recipe.granularity import NM
from onnxprune.scoring import Weight, find_criterion, prunable_weights
from onnxprune.selection import allocation, select_weights
from onnxprune.selection.patterns import pattern_masks

LAYERS, WIDTH = 16, 128


def chain(layers: int) -> list[Weight]:
    nodes = "\n".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(layers))
    numbers = {f"w{i}": random(WIDTH, WIDTH, seed=i) for i in range(layers)}
    text = f"net (float[N, {WIDTH}] h0) => (float[N, {WIDTH}] h{layers}) {{\n{nodes}\n}}"
    return prunable_weights(prepare(graph(text, numbers)))


def lamp(weights: list[Weight]) -> object:
    shares = allocation.ALLOCATIONS["lamp"](weights, 0.5)
    return allocation.masks_of_shares(weights, find_criterion("magnitude"), shares or {})


def peak(choose: Callable[[list[Weight]], object], weights: list[Weight]) -> int:
    choose(weights)  # what is imported and cached at the first time does not count
    tracemalloc.start()
    masks = choose(weights)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert masks
    return most


@pytest.mark.parametrize(
    "choose",
    [
        lamp,
        lambda weights: pattern_masks(weights, find_criterion("magnitude"), NM(2, 4), 0.5).masks,
        lambda weights: select_weights(weights, find_criterion("magnitude"), 0.5),
    ],
    ids=["lamp", "2:4", "together"],
)
def test_memory_does_not_grow_with_the_layers(
    choose: Callable[[list[Weight]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "_SCORES_IN_MEMORY", 0)
    monkeypatch.setattr("onnxprune.runtime.stream.store.SMALLEST", 0)
    few, many = peak(choose, chain(LAYERS // 8)), peak(choose, chain(LAYERS))
    float32 = 4 * LAYERS * WIDTH * WIDTH
    assert many - few < float32 / 4, f"{LAYERS} layers take {many / few:.1f} times the memory of {LAYERS // 8}"


def test_shares_of_scores_on_disk_are_those_of_scores_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = chain(4)
    expected = allocation.ALLOCATIONS["lamp"](weights, 0.6)
    monkeypatch.setattr(allocation, "_SCORES_IN_MEMORY", 0)
    monkeypatch.setattr("onnxprune.runtime.stream.store.SMALLEST", 0)
    assert allocation.ALLOCATIONS["lamp"](weights, 0.6) == expected


def test_the_smallest_of_sorted_arrays_is_that_of_all() -> None:
    rng = np.random.default_rng(0)
    arrays = [np.sort(np.square(rng.standard_normal(n))) for n in (5, 1, 30)]
    together = np.sort(np.concatenate(arrays))
    for count in (1, 7, 36):
        bits = allocation._smallest([a.view(np.uint64) for a in arrays], count)
        assert bits.view(np.float64) == together[count - 1]
