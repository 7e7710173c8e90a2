"""Pictures of leaves: edges like natural pictures, a range like theirs, written as noise and back."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.synthetic.leaves import is_picture, pictures
from onnxprune.synthetic.noise import amplitudes, coloured, signal, whitened
from onnxprune.synthetic.samples import made_up
from tests.small_models import graph, random

FOLDED = """g (float[N,3,32,32] x) => (float[N,12] y) {
    c = Conv <strides = [2, 2]> (x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v, b) }"""


def _steepness(values: np.ndarray) -> float:
    """Kurtosis of the differences between neighbours: 3 for normal numbers, far more where there are edges."""
    steps = np.diff(values, axis=-1)
    return float(np.mean(steps**4) / np.mean(steps**2) ** 2)


def test_leaves_have_edges_and_noise_has_none() -> None:
    rng = np.random.default_rng(0)
    noise = signal(rng.standard_normal((20, 1, 64, 64)), amplitudes((64, 64), np.ones(20)))
    assert _steepness(pictures(rng, 20, 1, (64, 64))) > 8 > 4 > _steepness(noise)


def test_they_have_the_range_and_the_colours_of_pictures() -> None:
    made = pictures(np.random.default_rng(0), 100, 3, (32, 48))
    assert made.shape == (100, 3, 32, 48) and made.dtype == np.float32 and abs(made).max() <= 2.5
    assert made.mean() == pytest.approx(0, abs=0.15) and made.std() == pytest.approx(1, abs=0.15)
    colours = np.corrcoef(made.transpose(1, 0, 2, 3).reshape(3, -1))[np.triu_indices(3, 1)]
    assert (colours > 0.8).all() and (colours < 0.98).all()


@pytest.mark.parametrize("extents", [(16, 16), (17, 24)])
def test_noise_gives_back_the_picture_that_it_stands_for(extents: tuple[int, int]) -> None:
    made, spectrum = pictures(np.random.default_rng(0), 3, 3, extents), amplitudes(extents, np.ones(3))
    assert signal(coloured(whitened(made, spectrum)), spectrum) == pytest.approx(made, abs=1e-4)


@pytest.mark.parametrize(
    ("places", "there"), [((224, 224), True), ((8, 8), False), ((16000,), False), ((4, 32, 32), False)]
)
def test_what_is_a_picture(places: tuple[int, ...], there: bool) -> None:
    assert is_picture(places) == there


def test_classes_change_pictures_and_leave_most_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    model = graph(FOLDED, {"w": 3 * random(8, 3, 3, 3), "v": 4 * random(8, 12), "b": random(12)})
    plain, fitted = (made_up(model, 128, 0, gradients=g) for g in (False, True))
    assert "pictures of random shapes" in plain.made_up and "random classes" in fitted.made_up
    monkeypatch.setattr("onnxprune.synthetic.match._PATH", 2.5)  # as noise is changed
    far = made_up(model, 128, 0)
    before, *others = (np.asarray(c.inputs["x"]) for c in (plain, fitted, far))
    near, far_off = (np.square(made - before).mean() / np.square(before).mean() for made in others)
    assert 0 < near < 1 and far_off > 5 * near
