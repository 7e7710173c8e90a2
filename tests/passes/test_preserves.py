"""What every pass says of its result in `preserves`, held against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_models import conv_net, graph, random, set_array, two_layers

from onnxprune import model_io, passes, runtime

MODELS = Path(__file__).resolve().parents[2] / "models"
PASSES = {name: kind for name in passes.__all__ if isinstance(kind := getattr(passes, name), type)}
EXACT = sorted(name for name, kind in PASSES.items() if kind.preserves == "exactly")
OF_MASKS = {"TileLayers"}
"""Passes that are made with masks: test_tiles.py runs them."""


def with_dead_units() -> ir.Model:
    """Two layers, half of whose hidden units are dead: nothing reads them."""
    model = two_layers(16)
    weight = random(16, 4, seed=5)
    weight[::2] = 0
    set_array(model, "w2", weight)
    return model


def with_computed_weights() -> ir.Model:
    """A weight that the graph computes, and a branch that nothing reads."""
    return graph(
        "agraph (float[N,8] x) => (float[N,8] y) {"
        "t = Transpose <perm = [1, 0]> (w) s = Mul(t, scale) a = MatMul(x, s) b = Relu(a) c = MatMul(b, v)"
        "unread = Relu(c) same = Identity(c) y = Add(same, x) }",
        {"w": random(8, 8), "scale": random(8, seed=1), "v": random(8, 8, seed=2)},
    )


FILES: dict[str, Callable[[], ir.Model]] = {
    path.stem: lambda path=path: model_io.load(path)  # type: ignore[misc]
    for path in sorted(MODELS.glob("digits_*.onnx"))
}
EXAMPLES: dict[str, Callable[[], ir.Model]] = {
    "conv_net": lambda: conv_net(8),
    "with_dead_units": with_dead_units,
    "with_computed_weights": with_computed_weights,
    **FILES,
}


def difference(before: ir.Model, after: ir.Model) -> float:
    """The largest difference of the outputs, relative to the largest output."""
    sessions = [runtime.make_session(model) for model in (before, after)]
    found = []
    for feeds in runtime.working_inputs(before, seed=1, count=2):
        expected, actual = (runtime.run(session, feeds) for session in sessions)
        assert any(np.any(np.asarray(output) != 0) for output in expected.values())
        found.append(runtime.compare_outputs(expected, actual).max_rel)
    return max(found)


def test_every_pass_says_what_it_preserves() -> None:
    assert {kind.preserves for kind in PASSES.values()} == {"exactly", "up to recovery"}
    changing_nothing = {
        "FoldWeights",
        "JoinTiles",
        "Normalise",
        "RemoveDeadUnits",
        "StoreOutputsFirst",
        "Tidy",
        "TileLayers",
    }
    assert set(EXACT) == changing_nothing


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("name", sorted({*EXACT} - OF_MASKS))
def test_what_is_preserved_exactly_gives_the_same_outputs(name: str, example: str) -> None:
    before, after = EXAMPLES[example](), EXAMPLES[example]()
    PASSES[name]()(after)
    assert difference(before, after) < 1e-5


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("FoldWeights", "with_computed_weights"),
        ("Tidy", "with_computed_weights"),
        ("RemoveDeadUnits", "with_dead_units"),
    ],
)
def test_the_examples_give_these_passes_something_to_do(name: str, example: str) -> None:
    assert PASSES[name]()(EXAMPLES[example]()).modified
