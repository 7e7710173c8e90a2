"""Runs of moves that only pick channels become one Gather; all other runs stay. The function is the same, always."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, random

from onnxprune import runtime
from onnxprune.passes import Normalise, Tidy
from onnxprune.passes import picked_indices as steps
from onnxprune.structure.analysis import analyse

HEAD = (
    "agraph (float[N,3,5,5] x) => (float[N,4] y) {{ a = Conv(x, w1) {} g = Flatten(p) y = Gemm <transB = 1> (g, w3) }}"
)


def image(moves: str, channels: int = 8, opset: int = 17, **constants: object) -> ir.Model:
    """A convolution of eight channels, moves that make d of it, and a second convolution that reads d."""
    text = HEAD.format(f"{moves} e = Conv(d, w2) p = GlobalAveragePool(e)")
    weights = {"w1": random(8, 3, 1, 1), "w2": random(6, channels, 1, 1), "w3": random(4, 6)}
    return graph(text, {**weights, **{k: np.asarray(v) for k, v in constants.items()}}, opset=opset)


def normalised(model: ir.Model) -> ir.Model:
    """Normalise a copy, and see that nothing changed for who runs it."""
    made = model.clone()
    Normalise()(made)
    Tidy()(made)
    for feeds in runtime.working_inputs(model, count=2):
        assert runtime.compare(model, made, feeds).max_rel == 0
    assert [v.name for v in made.graph.outputs] == [v.name for v in model.graph.outputs]
    return made


def indices(model: ir.Model) -> list[int]:
    """Return what the Gathers together pick of eight channels."""
    picked = np.arange(8)
    for node in [n for n in model.graph if n.op_type == "Gather"]:
        assert node.attributes.get_int("axis", 0) == 1
        assert node.inputs[1] is not None and node.inputs[1].const_value is not None
        picked = picked[node.inputs[1].const_value.numpy()]
    return picked.tolist()


TURN = "c = Transpose <perm = [0, 2, 1, 3, 4]> (b)"
SHUFFLES = {
    "in two groups": (f"b = Reshape(a, s24) {TURN} d = Reshape(c, s8)", [0, 4, 1, 5, 2, 6, 3, 7]),
    "in four groups": (f"b = Reshape(a, s42) {TURN} d = Reshape(c, s8)", [0, 2, 4, 6, 1, 3, 5, 7]),
    "batch inferred": (f"b = Reshape(a, s24) {TURN} d = Reshape(c, free)", [0, 4, 1, 5, 2, 6, 3, 7]),
}
SHAPES = {
    "s24": [0, 2, 4, 5, 5], "s42": [0, 4, 2, 5, 5], "s8": [0, 8, 5, 5], "free": [-1, 8, 5, 5], "swap": [0, 2, 4, 5, 5],
    "pairs": [2, -1, 4, 5, 5], "second": 1, "first": [0],
}  # fmt: skip


@pytest.mark.parametrize("name", SHUFFLES)
def test_a_shuffle_becomes_a_gather_of_its_order(name: str) -> None:
    moves, order = SHUFFLES[name]
    made = normalised(image(moves, **SHAPES))
    assert indices(made) == order
    assert [n.op_type for n in made.graph] == ["Conv", "Gather", "Conv", "GlobalAveragePool", "Flatten", "Gemm"]
    assert sorted(len(g) for g in analyse(made).groups) == [6, 8]


def test_the_gather_takes_the_name_of_what_it_stands_for() -> None:
    made = normalised(image(SHUFFLES["in two groups"][0], **SHAPES))
    gather = next(n for n in made.graph if n.op_type == "Gather")
    assert gather.outputs[0].name == "d"
    assert not [v for node in made.graph for v in node.outputs if v.name == "d_before_gather"]


def test_what_only_the_run_read_goes_with_it() -> None:
    """The analysis would walk it for nothing, and it may tie channels that the Gather leaves free."""
    moves = f"n = Shape(a) m = Mul(n, ones) k = Concat <axis = 0> (m, nothing) f = Identity(k) {TURN} d = Reshape(c, f)"
    model = image("b = Reshape(a, s24)" + moves, **SHAPES, ones=[1] * 4, nothing=np.zeros(0, np.int64))
    Normalise()(model)
    assert [n.op_type for n in model.graph] == ["Conv", "Gather", "Conv", "GlobalAveragePool", "Flatten", "Gemm"]


def test_both_halves_of_a_shuffle_are_picked() -> None:
    """Older ShuffleNet exports put the halves on the first axis and take [0] and [1] of it."""
    moves = (
        "b = Reshape(a, s24) c = Transpose <perm = [0, 2, 1, 3, 4]> (b) m = Reshape(c, s8)"
        "h = Reshape(m, s24) k = Transpose <perm = [1, 0, 2, 3, 4]> (h)"
        "r = Reshape(k, r24) d = Gather <axis = 0> (r, second)"
    )
    made = normalised(image(moves, channels=4, r24=[2, -1, 4, 5, 5], **SHAPES))
    assert indices(made) == [2, 6, 3, 7]


@pytest.mark.parametrize(
    "moves",
    [
        "b = Reshape(a, s24) c = Transpose <perm = [0, 1, 2, 4, 3]> (b) d = Reshape(c, s8)",  # turns the pictures
        "b = Reshape(a, s24) c = Transpose <perm = [0, 1, 2, 3, 4]> (b) d = Reshape(c, s8)",  # does nothing
        "b = Reshape(a, s24) c = Transpose <perm = [0, 2, 1, 4, 3]> (b) d = Reshape(c, s8)",  # turns both
        "b = Reshape(a, s24) k = Relu(b) c = Transpose <perm = [0, 2, 1, 3, 4]> (k) d = Reshape(c, s8)",  # not a run
    ],
)
def test_what_does_more_or_less_than_pick_channels_stays(moves: str) -> None:
    made = normalised(image(moves, **SHAPES))
    assert "Gather" not in [n.op_type for n in made.graph]
    assert [n.op_type for n in made.graph].count("Reshape") == 2


def test_a_shuffle_that_is_read_twice_stays_for_the_other_reader() -> None:
    moves = f"b = Reshape(a, s24) {TURN} d = Reshape(c, s8)"
    model = image(moves, **SHAPES)
    turned = next(n for n in model.graph if n.op_type == "Transpose").outputs[0]
    turned.type, turned.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, 4, 2, 5, 5])
    model.graph.outputs.append(turned)
    made = normalised(model)
    assert [n.op_type for n in made.graph].count("Gather") == 1
    assert [n.op_type for n in made.graph].count("Transpose") == 1


def test_a_shuffle_that_is_an_output_keeps_its_name() -> None:
    text = f"""agraph (float[N,3,5,5] x) => (float[N,8,5,5] d) {{
        a = Conv(x, w1) b = Reshape(a, s24) {TURN} d = Reshape(c, s8) }}"""
    shapes = {k: np.array(SHAPES[k]) for k in ("s24", "s8")}
    made = normalised(graph(text, {"w1": random(8, 3, 1, 1), **shapes}))
    assert made.graph.outputs[0].name == "d"


def test_an_axis_of_unknown_extent_is_not_picked_from() -> None:
    """The batch is shuffled: how long it is depends on who runs it."""
    text = """agraph (float[N,4,6] x) => (float[M,4,6] y) {
        b = Reshape(x, s) c = Transpose <perm = [1, 0, 2, 3]> (b) d = Reshape(c, t) y = MatMul(d, w) }"""
    constants = {"s": np.array([2, -1, 4, 6]), "t": np.array([-1, 4, 6]), "w": random(6, 6)}
    model = graph(text, constants)
    made = model.clone()
    Normalise()(made)
    assert [n.op_type for n in made.graph] == ["Reshape", "Transpose", "Reshape", "MatMul"]


def test_a_shuffle_inside_a_branch_is_found() -> None:
    text = f"""agraph (float[N,3,5,5] x, bool flag) => (float[N,8,5,5] y) {{
        a = Conv(x, w1)
        y = If (flag) <
            then_branch = t () => (float[N,8,5,5] d) {{ b = Reshape(a, s24) {TURN} d = Reshape(c, s8) }},
            else_branch = e () => (float[N,8,5,5] k) {{ k = Relu(a) }}> }}"""
    shapes = {k: np.array(SHAPES[k]) for k in ("s24", "s8")}
    model = graph(text, {"w1": random(8, 3, 1, 1), **shapes})
    made = model.clone()
    Normalise()(made)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32)
    for flag in (True, False):
        assert runtime.compare(model, made, {"x": x, "flag": np.array(flag)}).max_rel == 0


def test_a_gather_in_front_of_a_shuffle_joins_it() -> None:
    moves = f"i = Gather <axis = 1> (a, turned) b = Reshape(i, s24) {TURN} d = Reshape(c, s8)"
    made = normalised(image(moves, turned=np.arange(8)[::-1].copy(), **SHAPES))
    assert [n.op_type for n in made.graph].count("Gather") == 1
    assert indices(made) == [7, 3, 6, 2, 5, 1, 4, 0]


@pytest.mark.parametrize("seed", range(60))
def test_steps_tell_what_numbered_elements_do(seed: int) -> None:
    """Runs drawn at random, with the same answer by both ways wherever steps have one."""
    rng = np.random.default_rng(seed)
    extents = [2, *rng.permutation([12, 2, 3]).tolist()]
    axes: list[list[tuple[int, int]]] | None = steps.contiguous(extents)
    labels = np.arange(np.prod(extents)).reshape(extents)
    first = 0
    for _ in range(4):
        assert axes is not None
        turn = rng.integers(3)
        if turn == 0:
            order = rng.permutation(labels.ndim).tolist()
            axes, labels = [axes[i] for i in order], labels.transpose(order)
        elif turn == 1 and labels.ndim > 2:
            axis = int(rng.integers(labels.ndim))
            index = int(rng.integers(-labels.shape[axis], labels.shape[axis]))
            axes, first = steps.without(axes, axis, index, first)
            labels = labels.take(index, axis=axis)
        else:
            shape = rng.permutation(labels.shape[:-2] + (labels.shape[-1], labels.shape[-2])).tolist()
            labels = labels.reshape(shape)
            axes = steps.divided(axes, shape)
            if axes is None:  # an axis ends inside of a step's elements
                return
    assert labels.ndim == len(axes) and labels.size == np.prod([n for axis in axes for n, _ in axis], dtype=int)
    places = np.full((1,) * labels.ndim, first)
    for i, axis in enumerate(axes):
        line = np.zeros(1, np.int64)
        for n, apart in axis:
            line = np.add.outer(line, np.arange(n) * apart).reshape(-1)
        places = places + line.reshape([-1 if k == i else 1 for k in range(labels.ndim)])
    assert np.array_equal(places, labels)
    if labels.ndim == len(extents):
        numbered = np.arange(np.prod(extents)).reshape(extents)
        told, seen = steps.picked_axis(extents, axes, first), steps.picked_labels(numbered, labels)
        assert (told is None) == (seen is None)
        if told is not None and seen is not None:
            assert told[0] == seen[0] and np.array_equal(told[1], seen[1])
