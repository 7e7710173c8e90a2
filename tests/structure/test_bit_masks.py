"""Masks as bits: the same flags come out, in an eighth of the bytes."""

from __future__ import annotations

import tracemalloc

import numpy as np

from onnxprune.structure.bit_masks import BitMasks


def test_each_mask_comes_back_as_it_was() -> None:
    rng = np.random.default_rng(0)
    masks = {str(shape): rng.random(shape) < 0.5 for shape in [(), (1,), (3, 5), (2, 8, 4), (0, 3)]}
    masks["turned"] = masks["(3, 5)"].T
    bits = BitMasks(masks.items())
    assert list(bits) == list(masks) and len(bits) == len(masks)
    for name, mask in masks.items():
        assert bits[name].shape == mask.shape and bits[name].dtype == bool
        np.testing.assert_array_equal(bits[name], mask)
    other = bits.renamed(lambda name: f"a {name}")
    np.testing.assert_array_equal(other["a (3, 5)"], masks["(3, 5)"])


def test_one_mask_at_a_time_is_whole() -> None:
    size, count = 1 << 20, 16
    tracemalloc.start()
    bits = BitMasks((number, np.ones(size, bool)) for number in range(count))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(bits) == count
    assert held < size * count / 7
    assert peak < size * count / 4
