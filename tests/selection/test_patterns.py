"""Patterns: every group of every weight is looked at, by loops that know nothing of how the masks were made."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import RecipeError
from onnxprune.graph.layers import matrix_axes
from onnxprune.passes import MaskWeights, Normalise
from onnxprune.recipe.granularity import NM, Block, parse_pattern
from onnxprune.scoring import Weight, find_criterion, prunable_weights
from onnxprune.selection.patterns import pattern_masks
from onnxprune.structure.analysis import analyse

NETWORK = """<ir_version: 8, opset_import: ["": 13]>
net (float[N, 3, 8, 8] x, float[5, N, 8] s) => (float[N, 6] y, float[5, 1, N, 4] z) {
  a = Conv(x, first)
  b = Conv<group = 2>(a, grouped)
  t = ConvTranspose(b, transposed)
  f = GlobalAveragePool(t)
  p = Flatten(f)
  g = Gemm<transB = 1>(p, gemm)
  turned = Transpose<perm = [1, 0]>(behind)
  m = MatMul(g, turned)
  y = MatMul(m, plain)
  z = RNN<hidden_size = 4>(s, w, r)
}"""
SHAPES = {
    "first": (8, 3, 3, 3), "grouped": (8, 4, 3, 3), "transposed": (8, 6, 2, 2), "gemm": (10, 6), "behind": (12, 10),
    "plain": (12, 6), "w": (1, 4, 8), "r": (1, 4, 4),
}  # fmt: skip
REDUCTION = {"first": 1, "grouped": 1, "transposed": 0, "gemm": 1, "behind": 1, "plain": 0, "w": 2, "r": 2}
OUTPUT = {"first": 0, "grouped": 0, "transposed": 1, "gemm": 0, "behind": 0, "plain": 1, "w": 1, "r": 1}


def weights() -> list[Weight]:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    model = ir.from_proto(proto)
    Normalise()(model)
    return prunable_weights(analyse(model))


def masks(pattern: str, sparsity: float = 0.5) -> tuple[dict[str, npt.NDArray[np.bool_]], dict[str, str]]:
    found = pattern_masks(weights(), find_criterion("magnitude"), parse_pattern(pattern), sparsity)
    return {str(v.name): m for v, m in found.masks.items()}, dict(found.dense)


def test_the_axes_of_every_operator() -> None:
    axes = {w.name: matrix_axes(w.value, w.node) for w in weights()}
    assert {n: a.reduction for n, a in axes.items() if a} == REDUCTION
    assert {n: a.output for n, a in axes.items() if a} == OUTPUT


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 8)])
def test_every_group_along_the_reduction_axis_keeps_its_n_largest(n: int, m: int) -> None:
    found, dense = masks(f"{n}:{m}")
    numbers = {w.name: np.abs(w.numbers()) for w in weights()}
    assert set(found) == {name for name, axis in REDUCTION.items() if SHAPES[name][axis] % m == 0}
    for name, mask in found.items():
        axis = REDUCTION[name]
        others = [range(k) for i, k in enumerate(SHAPES[name]) if i != axis]
        for place in itertools.product(*others):
            at = [*place[:axis], slice(None), *place[axis:]]
            row, values = mask[tuple(at)], numbers[name][tuple(at)]
            for start in range(0, len(row), m):
                group, size = row[start : start + m], values[start : start + m]
                assert group.sum() == n
                assert size[group].min() >= size[~group].max()


def test_a_reduction_axis_that_is_no_multiple_stays_dense_and_says_so() -> None:
    found, dense = masks("2:4")
    assert set(dense) == {"first", "gemm", "behind"}
    assert "3 entries, no multiple of 4" in dense["first"]
    assert "10 entries" in dense["behind"]
    assert not set(dense) & set(found)


def test_two_of_four_runs_in_the_model_with_half_of_each_weight() -> None:
    chosen = weights()
    structure = chosen[0].structure
    found = pattern_masks(chosen, find_criterion("magnitude"), NM(2, 4), 0.5)
    MaskWeights(structure, found.masks)(structure.model)
    plain = structure.model.graph.initializers["plain"].const_value
    assert plain is not None
    assert (np.count_nonzero(plain.numpy().reshape(3, 4, 6), axis=1) == 2).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_blocks_stay_or_go_as_one(rows: int, columns: int, sparsity: float) -> None:
    found, dense = masks(f"block:{rows}x{columns}", sparsity)
    assert not dense
    for name, mask in found.items():
        matrix = np.moveaxis(mask, (OUTPUT[name], REDUCTION[name]), (-2, -1)).reshape(
            -1, SHAPES[name][OUTPUT[name]], SHAPES[name][REDUCTION[name]]
        )
        for page in matrix:
            for i in range(0, page.shape[0], rows):
                for j in range(0, page.shape[1], columns):
                    block = page[i : i + rows, j : j + columns]
                    assert block.all() or not block.any()
    total = sum(m.size for m in found.values())
    gone = sum(int((~m).sum()) for m in found.values())
    assert sparsity * total - rows * columns < gone <= sparsity * total


def test_blocks_of_one_are_single_weights() -> None:
    found, _ = masks("block:1x1", 0.5)
    numbers = {w.name: np.abs(w.numbers()) for w in weights()}
    kept = np.concatenate([numbers[n][m] for n, m in found.items()])
    gone = np.concatenate([numbers[n][~m] for n, m in found.items()])
    assert kept.min() >= gone.max()


def test_patterns_are_read_as_written() -> None:
    assert parse_pattern("2:4") == NM(2, 4)
    assert parse_pattern("block:16x1") == Block(16, 1)


@pytest.mark.parametrize("text", ["4:2", "0:4", "4:4", "block:0x4", "block:4", "two:four", ""])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="no pattern"):
        parse_pattern(text)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("pattern", ["2:4", "block:1x8"])
def test_no_pattern_crosses_the_groups_of_a_convolution(operator: str, groups: int, pattern: str) -> None:
    """What one output sums over are the channels of its group: a pattern that needs more leaves the weight dense."""
    shape = (16, 16 // groups, 2, 2)  # of 16 channels to 16, in both layouts
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    text = f"""<ir_version: 8, opset_import: ["": 13]> net (float[N, 16, 6, 6] x) => (float[N, 16, a, b] y) {{
        y = {operator}<group = {groups}>(x, w) }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    model = ir.from_proto(proto)
    Normalise()(model)
    found = pattern_masks(prunable_weights(analyse(model)), find_criterion("magnitude"), parse_pattern(pattern), 0.5)
    length, inputs = (4 if pattern == "2:4" else 8), 16 // groups
    if operator == "Conv" and pattern != "2:4" and inputs < length:
        return  # axis 1 holds one group: its last block is a shorter one, as at the end of any axis
    if inputs % length:
        assert list(found.dense) == ["w"] and not found.masks
        return
    (mask,) = found.masks.values()
    for group, output, y, x in itertools.product(range(groups), range(inputs), range(2), range(2)):
        if operator == "Conv":
            summed = mask[group * inputs + output, :, y, x]
        else:
            summed = mask[group * inputs : (group + 1) * inputs, output, y, x]
        runs = summed.reshape(-1, length).sum(axis=1)
        assert set(runs) <= ({2} if pattern == "2:4" else {0, 8})
