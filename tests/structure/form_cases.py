"""Forms of operators that neither ONNX's own cases nor `contrib_cases` have, and all cases of an operator together.

Old operator sets, attributes at other values than the default, operands left out or broadcast: each is a branch of a
rule that nothing else would run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from . import contrib_cases, node_cases
from .node_cases import Case
from .twins import Array

_rng = np.random.default_rng(1)
CASES: dict[str, list[Case]] = {}


def all_cases(operator: str) -> list[Case]:
    """Return every case of one operator, named as rules name it."""
    return [*node_cases.cases().get(operator, []), *contrib_cases.cases(operator), *CASES.get(operator, [])]


def _reals(*shape: int) -> Array:
    return _rng.standard_normal(shape).astype(np.float32)


def _ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def _form(
    name: str, operator: str, inputs: Mapping[str, Array | None], outputs: str = "y", opset: int = 23, **attributes: Any
) -> None:
    domain, _, op_type = operator.rpartition("::")
    names = [k if v is not None else "" for k, v in inputs.items()]
    node = helper.make_node(op_type, names, [o.strip("-") for o in outputs.split()], domain=domain, **attributes)
    constants = {k: v for k, v in inputs.items() if v is not None}
    opsets = {"": opset, "com.microsoft": 1}
    CASES.setdefault(operator, []).append(Case(name, node, constants, opsets))


def _named(operators: str) -> Iterator[str]:
    yield from operators.split()


def _contractions() -> None:
    x = {"a": _reals(4, 6), "b": _reals(6, 5)}
    for name, shape in {"scalar": (1,), "row": (5,), "column": (4, 1), "full": (4, 5), "row 2": (1, 5)}.items():
        _form(f"bias, {name}", "Gemm", {**x, "c": _reals(*shape)}, alpha=0.5, beta=2.0)
    turned = {"a": _reals(6, 4), "b": _reals(5, 6), "c": _reals(5)}
    _form("both turned", "Gemm", turned, transA=1, transB=1)
    for activation in ("Relu", "Sigmoid", "Tanh", "LeakyRelu"):
        _form(activation, "com.microsoft::FusedGemm", {**x, "c": _reals(5)}, activation=activation)
        image = {"x": _reals(1, 4, 5, 5), "w": _reals(6, 4, 3, 3), "b": _reals(6)}
        _form(activation, "com.microsoft::FusedConv", image, activation=activation)
        _form(
            f"{activation}, sum", "com.microsoft::FusedConv", {**image, "z": _reals(1, 6, 3, 3)}, activation=activation
        )
    _form("no bias", "com.microsoft::FusedConv", {k: v for k, v in image.items() if k != "b"}, activation="Relu")
    _form("no bias", "Conv", {"x": _reals(2, 4, 5, 5), "w": _reals(6, 4, 3, 3)})
    _form("one axis", "Conv", {"x": _reals(2, 4, 9), "w": _reals(6, 2, 3), "b": _reals(6)}, group=2)
    offsets = {"x": _reals(2, 4, 4, 4), "w": _reals(6, 4, 2, 2), "o": 0.3 * _reals(2, 16, 3, 3)}
    _form("offsets of two groups", "DeformConv", offsets, offset_group=2)
    _form("no bias", "ConvTranspose", {"x": _reals(2, 4, 5, 5), "w": _reals(4, 6, 3, 3)})
    for a, b in (((6,), (6, 5)), ((4, 6), (6,)), ((6,), (6,)), ((6,), (3, 6, 5)), ((3, 4, 6), (6,))):
        _form(f"{len(a)} by {len(b)} axes", "MatMul", {"a": _reals(*a), "b": _reals(*b)})
    for a, b in (((3, 4, 6), (3, 6, 5)), ((1, 4, 6), (3, 6, 5)), ((2, 1, 4, 6), (3, 6, 5)), ((3, 4, 6), (6, 5))):
        _form(f"batches {a} {b}", "MatMul", {"a": _reals(*a), "b": _reals(*b)})
    for ta, tb in ((1, 0), (0, 1), (1, 1)):
        operands = {"a": _reals(*((2, 6, 4) if ta else (2, 4, 6))), "b": _reals(*((2, 5, 6) if tb else (2, 6, 5)))}
        _form(f"turned {ta}{tb}", "com.microsoft::FusedMatMul", operands, transA=ta, transB=tb, alpha=0.5)
    _form("batches turned", "com.microsoft::FusedMatMul", {"a": _reals(4, 2, 6), "b": _reals(2, 6, 5)}, transBatchA=1)
    for equation, shapes in {
        "ij,jk": ((4, 6), (6, 5)), "bij,bjk->bik": ((3, 4, 6), (3, 6, 5)), "i,j->ij": ((4,), (5,)),
        "...ij,...jk->...ik": ((3, 4, 6), (3, 6, 5)), "...ij,jk->...ik": ((3, 4, 6), (6, 5)), "ii->i": ((4, 4),),
        "ij->ji": ((4, 6),), "ij->": ((4, 6),), "ij,jk,kl->il": ((4, 6), (6, 5), (5, 3)),
        "bij,bj->b": ((3, 4, 6), (3, 6)),
        "i...,i...->...": ((4, 3), (4, 3)), "ij,ik->ijk": ((4, 6), (4, 5)), "bij,jk->bik": ((1, 4, 6), (6, 5)),
        "...ij,...jk": ((1, 4, 6), (1, 6, 5)), "...i,...i->...": ((1, 4, 6), (3, 1, 6)), "ba": ((4, 6),),
    }.items():  # fmt: skip
        _form(equation, "Einsum", {chr(97 + i): _reals(*s) for i, s in enumerate(shapes)}, equation=equation)


def _recurrent() -> None:
    for name, gates, states in (("RNN", 1, ("h0",)), ("GRU", 3, ("h0",)), ("LSTM", 4, ("h0", "c0"))):
        cell = {"x": _reals(4, 2, 5), "w": _reals(1, gates * 6, 5), "r": _reals(1, gates * 6, 6)}
        biased = {**cell, "b": _reals(1, gates * 12)}
        started = {**biased, "lengths": np.array([4, 3], np.int32), **{s: _reals(1, 2, 6) for s in states}}
        outputs = "y h c" if name == "LSTM" else "y h"
        _form("no bias", name, cell, outputs, hidden_size=6)
        _form("bias", name, biased, outputs, hidden_size=6)
        _form("started", name, started, outputs, hidden_size=6)
        batch_first = {**cell, "x": _reals(2, 4, 5), "b": _reals(1, gates * 12), "lengths": None}
        _form(
            "batch first",
            name,
            {**batch_first, **{s: _reals(2, 1, 6) for s in states}},
            outputs,
            hidden_size=6,
            layout=1,
        )
        inner = {"RNN": (), "GRU": ("Sigmoid",), "LSTM": ("Sigmoid",)}[name]
        for one in ("Relu", "Sigmoid", "Softplus", "Softsign"):
            names = [*inner, *[one] * (2 if name == "LSTM" else 1)]
            _form(f"{one} throughout", name, biased, outputs, hidden_size=6, activations=names)
        if name == "LSTM":
            for names in (["Sigmoid", "Sigmoid", "Tanh"], ["Sigmoid", "Tanh", "Sigmoid"], ["Tanh", "Tanh", "Tanh"]):
                _form(" ".join(names), name, biased, outputs, hidden_size=6, activations=names)
            _form("peepholes", name, {**started, "p": _reals(1, 18)}, outputs, hidden_size=6)
        if name == "GRU":
            _form("gates that keep zero", name, biased, outputs, hidden_size=6, activations=["Tanh", "Tanh"])
            _form("reset behind", name, biased, outputs, hidden_size=6, linear_before_reset=1)
        two = {k: np.concatenate([v, v]) if k != "x" else v for k, v in biased.items()}
        twice = (
            [*inner, *["Tanh"] * (2 if name == "LSTM" else 1)],
            [*inner, *["Sigmoid"] * (2 if name == "LSTM" else 1)],
        )
        _form("one way ends in Sigmoid", name, two, outputs, hidden_size=6, direction="bidirectional",
              activations=[*twice[0], *twice[1]])  # fmt: skip


def _indexing() -> None:
    x = {"x": _reals(5, 8)}
    for name, (start, end, axis, step) in {
        "every second": (0, 8, 1, 2), "from the end": (-1, -9, 1, -1), "backwards by two": (7, -(1 << 31), 1, -2),
        "past the end": (2, 1 << 40, 1, 1), "last axis": (1, 4, -1, 1), "nothing": (3, 3, 1, 1),
        "far front": (-100, 3, 1, 1),
    }.items():  # fmt: skip
        bounds = {"a": _ints(start), "b": _ints(end), "c": _ints(axis), "d": _ints(step)}
        _form(name, "Slice", {**x, **bounds})
    front = {"a": _ints(0), "b": _ints(-(1 << 40)), "c": _ints(1)}
    far = {"a": _ints(-(1 << 40)), "b": _ints(4), "c": _ints(1)}
    _form("from far before the front", "Slice", {"x": _reals(9, 8), **far})
    _form("up to before the front", "Slice", {"x": _reals(7, 8), **front})
    _form("no axes", "Slice", {**x, "a": _ints(1, 2), "b": _ints(4, 7)})
    _form("both axes", "Slice", {**x, "a": _ints(1, 2), "b": _ints(4, 7), "c": _ints(1, 0), "d": _ints(2, 1)})
    _form("attributes", "Slice", x, opset=9, starts=[1], ends=[6], axes=[1])
    _form("attributes, no axes", "Slice", x, opset=9, starts=[1, 2], ends=[4, 7])
    deep = {"x": _reals(3, 5, 8)}
    _form("one", "Gather", {**deep, "i": np.array(2)}, axis=1)
    _form("table inside", "Gather", {**deep, "i": np.array([[0, 2], [3, 1]])}, axis=1)
    _form("last", "Gather", {**deep, "i": _ints(0, 7, 3)}, axis=-1)
    _form("in order", "Gather", {"x": _reals(12), "i": np.arange(12).reshape(3, 4)})
    elements = {**deep, "i": _rng.integers(0, 5, (3, 2, 8))}
    _form("inside", "GatherElements", elements, axis=1)
    _form("fewer", "GatherElements", {**deep, "i": _rng.integers(0, 5, (2, 2, 8))}, axis=-2)
    for opset, name in ((23, "ScatterElements"), (10, "Scatter")):
        updates = {**deep, "i": _rng.permutation(5)[None, :2, None].repeat(3, 0).repeat(8, 2), "u": _reals(3, 2, 8)}
        _form("inside", name, updates, opset=opset, axis=1)
    _form("pairs", "GatherND", {**deep, "i": np.array([[0, 1], [2, 4]])})
    _form("batch", "GatherND", {**deep, "i": np.array([[1], [2], [0]])}, batch_dims=1)
    _form("batch of pairs", "GatherND", {"x": _reals(3, 5, 8, 4), "i": _rng.integers(0, 5, (3, 6, 2))}, batch_dims=1)
    _form("one axis", "GatherND", {**deep, "i": np.array([[2], [0]])})
    _form("rows", "ScatterND", {**deep, "i": np.array([[1], [2]]), "u": _reals(2, 5, 8)})
    _form("pairs", "ScatterND", {**deep, "i": np.array([[0, 1], [2, 4], [1, 1]]), "u": _reals(3, 8)})
    _form("cache", "TensorScatter", {"x": _reals(2, 3, 6, 4), "u": _reals(2, 3, 2, 4), "w": _ints(1, 3)})
    _form("cache, no positions", "TensorScatter", {"x": _reals(2, 6, 4), "u": _reals(2, 2, 4)}, axis=1)
    for axis in (0, 1, -1):
        _form(f"axis {axis}", "CumSum", {**deep, "a": np.array(axis)})
    _form("attribute", "TopK", deep, "y i", opset=9, k=3, axis=1)
    _form("no axis", "TopK", {**deep, "k": _ints(2)}, "y i")
    _form("first axis", "TopK", {**deep, "k": _ints(2)}, "y i", axis=0)
    _form("inside", "Compress", {**deep, "c": np.array([True, False, True, True, False])}, axis=1)
    _form("upper", "Trilu", {"x": _reals(3, 4, 5)})
    _form("no axes", "ReverseSequence", {"x": _reals(4, 2, 7), "n": _ints(3, 4)})
    _form("turned round", "ReverseSequence", {"x": _reals(2, 4, 5), "n": _ints(3, 4)}, time_axis=1, batch_axis=0)
    pads = {"p": _ints(0, 1, 0, 2)}
    _form("zeros", "Pad", {**x, **pads})
    _form("ones", "Pad", {**x, **pads, "v": np.array(1.0, np.float32)})
    _form("zeros said", "Pad", {**x, **pads, "v": np.array(0.0, np.float32)})
    _form("axes", "Pad", {**x, "p": _ints(1, 2), "v": None, "axes": _ints(-1)})
    _form("cropped", "Pad", {**x, "p": _ints(0, -1, 0, 2)})
    _form("front alone", "Pad", {**x, "p": _ints(0, 2, 0, 0)})
    for mode in ("reflect", "edge"):
        _form(mode, "Pad", {**x, **pads}, mode=mode)
    _form("attributes", "Pad", x, opset=10, pads=[0, 1, 0, 2])
    _form("attributes, ones", "Pad", x, opset=10, pads=[0, 1, 0, 2], value=1.0)
    _form("axis", "CenterCropPad", {**deep, "s": _ints(4)}, axes=[1])
    image = {"x": _reals(2, 4, 3, 3)}
    _form("cropped", "Resize", {**image, "roi": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), "s": None,
          "n": _ints(2, 4, 6, 6)}, coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip
    _form("some axes", "Resize", {**image, "roi": None, "s": None, "n": _ints(6, 6)}, axes=[2, 3])
    _form("kept ratio", "Resize", {**image, "roi": None, "s": None, "n": _ints(6, 7)}, axes=[2, 3],
          keep_aspect_ratio_policy="not_larger")  # fmt: skip


def _shapes() -> None:
    x = {"x": _reals(3, 1, 8)}
    for name, shape in {"wider": (3, 5, 8), "shorter": (5, 8), "longer": (2, 3, 5, 8), "ones": (1, 5, 1)}.items():
        _form(name, "Expand", {**x, "s": _ints(*shape)})
    _form("row", "Expand", {"x": _reals(8), "s": _ints(4, 1)})
    deep = {"x": _reals(3, 6, 8)}
    for repeats in ((1, 2, 1), (2, 1, 3), (1, 1, 1)):
        _form(f"{repeats}", "Tile", {**deep, "r": _ints(*repeats)})
    _form("one", "Tile", {**x, "r": _ints(1, 4, 1)})
    for axis in (0, 1, 2, 3, -1):
        _form(f"axis {axis}", "Flatten", deep, axis=axis)
    for target in (
        (18, 8),
        (3, 48),
        (3, 2, 3, 8),
        (3, 3, 2, 8),
        (0, -1),
        (3, 6, 2, 4),
        (2, 9, 8),
        (3, 6, 8, 1),
        (144,),
    ):
        _form(f"{target}", "Reshape", {**deep, "s": _ints(*target)})
    _form("other factors", "Reshape", {"x": _reals(6, 10), "s": _ints(4, 15)})
    for axis in (0, 1, -1):
        joined = {"a": _reals(3, 6, 8), "b": _reals(3, 6, 8), "c": _reals(3, 6, 8)}
        _form(f"axis {axis}", "Concat", joined, axis=axis)
    _form("uneven", "Concat", {"a": _reals(3, 6), "b": _reals(3, 2)}, axis=1)
    _form("one", "Concat", {"a": _reals(3, 6)}, axis=1)
    _form("uneven", "Split", {**deep, "s": _ints(1, 5)}, "y z", axis=1)
    _form("attribute", "Split", deep, "y z", opset=11, axis=-1, split=[2, 6])
    _form("equal", "Split", deep, "y z", opset=17, axis=1)
    ones = {"x": _reals(1, 6, 1, 8)}
    _form("all", "Squeeze", ones)
    _form("attribute", "Squeeze", ones, opset=11, axes=[2])
    _form("last but one", "Squeeze", {**ones, "a": _ints(-2)})
    _form("attribute", "Unsqueeze", deep, opset=11, axes=[0, 2])
    _form("last", "Unsqueeze", {**deep, "a": _ints(-1)})
    _form("no order", "Transpose", deep)
    for order in ([0, 2, 1], [2, 0, 1]):
        _form(f"{order}", "Transpose", deep, perm=order)
    image = {"x": _reals(2, 4, 4, 6)}
    for mode in ("DCR", "CRD"):
        _form(f"{mode}, more channels", "DepthToSpace", {"x": _reals(2, 8, 2, 3)}, blocksize=2, mode=mode)
    _form("wide", "SpaceToDepth", image, blocksize=2)


def _normalisation() -> None:
    deep = {"x": _reals(3, 6, 8)}
    for operator in _named("Softmax LogSoftmax Hardmax"):
        for opset in (12, 23):
            _form(f"no axis, opset {opset}", operator, deep, opset=opset)
            for axis in (0, 1, -1):
                _form(f"axis {axis}, opset {opset}", operator, deep, opset=opset, axis=axis)
    for axis in (0, 1, -1):
        _form(f"axis {axis}", "LpNormalization", deep, axis=axis, p=2)
    _form("no axis", "LpNormalization", deep)
    image = {"x": _reals(2, 6, 4, 4)}
    affine = {"s": _reals(6), "b": _reals(6)}
    statistics = {"m": _reals(6), "v": np.abs(_reals(6)) + np.float32(0.5)}
    for opset in (7, 15):
        _form(f"opset {opset}", "BatchNormalization", {**image, **affine, **statistics}, opset=opset)
    _form("training", "BatchNormalization", {**image, **affine, **statistics}, "y m2 v2", training_mode=1)
    _form("two axes", "BatchNormalization", {"x": _reals(5, 6), **affine, **statistics}, opset=15)
    _form("channels", "InstanceNormalization", {**image, **affine})
    for groups in (1, 2, 3, 6):
        _form(f"{groups} groups", "GroupNormalization", {**image, **affine}, opset=21, num_groups=groups)
        grouped = {"s": _reals(groups), "b": _reals(groups)}
        _form(f"{groups} groups, opset 18", "GroupNormalization", {**image, **grouped}, opset=18, num_groups=groups)
    for axis, shape in ((-1, (8,)), (1, (6, 8)), (1, (8,)), (1, (6, 1)), (2, (8,))):
        scaled = {**deep, "s": _reals(*shape), "b": _reals(*shape)}
        _form(f"axis {axis}, {shape}", "LayerNormalization", scaled, "y m d", axis=axis)
        _form(f"axis {axis}, {shape}", "RMSNormalization", {**deep, "s": _reals(*shape)}, axis=axis)
    _form("no bias", "LayerNormalization", {**deep, "s": _reals(8)})
    _form("axes", "MeanVarianceNormalization", image, axes=[1, 2])
    _form("channels", "LRN", image, size=3)
    for operator in _named("ReduceSum ReduceMean ReduceMax ReduceL1 ReduceLogSum ReduceLogSumExp ReduceProd"):
        positive = {"x": np.abs(_reals(3, 6, 8)) + np.float32(0.1)}
        for keep in (0, 1):
            _form(f"inside, keep {keep}", operator, {**positive, "a": _ints(1)}, keepdims=keep)
            _form(f"all, keep {keep}", operator, positive, keepdims=keep)
        _form("nothing", operator, positive, noop_with_empty_axes=1)
        _form("attribute", operator, positive, opset=11, axes=[0, -1])
    for operator in _named("ArgMax ArgMin"):
        for keep in (0, 1):
            _form(f"inside, keep {keep}", operator, deep, axis=1, keepdims=keep)


def _elementwise() -> None:
    x, row = {"x": _reals(3, 6)}, {"r": _reals(6)}
    for low, high in ((-1.0, 1.0), (0.0, 6.0), (0.5, 1.0), (-2.0, -1.0), (None, 1.0), (0.1, None), (-1.0, None)):
        bounds = {k: None if v is None else np.array(v, np.float32) for k, v in (("low", low), ("high", high))}
        _form(f"{low} to {high}", "Clip", {**x, **bounds})
        attributes = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
        _form(f"{low} to {high}, attributes", "Clip", x, opset=6, **attributes)
    for exponent in (2.0, 0.5, 0.0, -1.0):
        _form(f"{exponent}", "Pow", {"x": np.abs(_reals(3, 6)) + np.float32(0.5), "e": np.array(exponent, np.float32)})
    _form("some negative", "Pow", {"x": np.abs(_reals(3, 2)) + np.float32(0.5), "e": np.array([2, -1], np.float32)})
    for operator in _named("Add Sub Mul Div Max Min Sum Mean PRelu"):
        _form("row", operator, {**x, **row})
        _form("column", operator, {**x, "c": _reals(3, 1)}) if operator != "PRelu" else None
        _form("number", operator, {**x, "n": np.array(2.0, np.float32)}) if operator != "PRelu" else None
    for operator in _named("Add Max Sum Where"):
        nothing = np.array(0.0, np.float32)
        if operator == "Where":
            _form("or zero", operator, {"c": _rng.random((3, 6)) > 0.5, **x, "n": nothing})
            _form("zero or", operator, {"c": _rng.random((3, 6)) > 0.5, "n": nothing, **x})
            _form("two", operator, {"c": _rng.random((3, 6)) > 0.5, **x, "z": _reals(3, 6)})
        else:
            _form("zero", operator, {**x, "n": nothing})
    for operator in _named("Max Min Sum Mean"):
        _form("three", operator, {**x, **row, "z": _reals(3, 6)})
        _form("one", operator, x)
    _form("training", "Dropout", {**x, "p": np.array(0.5, np.float32), "t": np.array(True)})
    _form("said not to train", "Dropout", {**x, "p": np.array(0.5, np.float32), "t": np.array(False)})
    _form("no training", "Dropout", {**x, "p": np.array(0.5, np.float32)}, "y m")
    _form("old", "Dropout", x, opset=7)
    image = {"x": _reals(2, 4, 6, 6)}
    for operator in _named("MaxPool AveragePool LpPool"):
        _form("padded", operator, image, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        _form("one axis", operator, {"x": _reals(2, 4, 6)}, kernel_shape=[2])
    _form("indices", "MaxPool", image, "y i", kernel_shape=[2, 2])


def _attention() -> None:
    """Attention operators in the forms that their rules refuse, and with operands of every rank."""
    packed = {"x": _reals(2, 3, 16), "w": _reals(16, 96), "b": _reals(96)}
    _form("its own table", "com.microsoft::Attention", packed, num_heads=4, do_rotary=1)
    _form("no bias", "com.microsoft::Attention", {"x": packed["x"], "w": packed["w"]}, num_heads=4)
    scores = {**packed, "m": None, "p": None, "s": _reals(1, 4, 3, 3)}
    _form("score bias", "com.microsoft::Attention", scores, num_heads=4)
    _form("present", "com.microsoft::Attention", packed, "y present", num_heads=4)
    qkv = {"q": _reals(2, 3, 32), "k": _reals(2, 5, 32), "v": _reals(2, 5, 32)}
    _form("all of one width", "com.microsoft::MultiHeadAttention", qkv, "y k2 v2", num_heads=4)
    _form("scores", "com.microsoft::MultiHeadAttention", qkv, "y - - s", num_heads=4)
    grouped = {"q": _reals(2, 3, 96), "k": _reals(2, 3, 32), "v": _reals(2, 3, 32), "pk": None, "pv": None}
    grouped |= {"last": np.array([2, 2], np.int32), "total": np.array(3, np.int32)}
    grouped |= {"cos": None, "sin": None, "at": None, "bias": None, "sink": _reals(6)}
    _form("sinks", "com.microsoft::GroupQueryAttention", grouped, "y pk2 pv2", num_heads=6, kv_num_heads=2)
    masked = {**qkv, "b": None, "m": _ints(5, 4).astype(np.int32)}
    _form("lengths", "com.microsoft::MultiHeadAttention", masked, num_heads=4)
    _form("no heads", "Attention", qkv)
    flat = {"q_num_heads": 4, "kv_num_heads": 4}
    for shape in ((3, 5), (1, 5), (2, 4, 3, 5), (1, 1, 3, 5), (2, 1, 3, 5)):
        _form(f"mask {shape}", "Attention", {**qkv, "m": _reals(*shape)}, **flat)
    _form("masked by flags", "Attention", {**qkv, "m": _rng.random((3, 5)) > 0.2}, **flat)
    _form("scaled", "Attention", qkv, scale=0.3, **flat)
    for mode in range(4):
        _form(f"scores {mode}", "Attention", qkv, "y - - s", qk_matmul_output_mode=mode, **flat)
    _form("outputs whose shape onnx does not know", "Attention", qkv, "y k2 v2", **flat)
    heads = {"q": _reals(2, 4, 3, 8), "k": _reals(2, 4, 5, 8), "v": _reals(2, 4, 5, 6)}
    _form("by head", "Attention", heads)
    linear = {"q": _reals(2, 3, 32), "k": _reals(2, 3, 32), "v": _reals(2, 3, 32)}
    for rule in ("linear", "gated", "delta", "gated_delta"):
        gates: dict[str, Array | None] = {**linear, "s": _reals(2, 4, 8, 8)}
        gates |= {"d": -np.abs(_reals(2, 3, 4)) if "gated" in rule else None}
        gates |= {"r": 0.3 * np.abs(_reals(2, 3, 4)) if "delta" in rule else None}
        _form(
            f"{rule}, by head", "com.microsoft::LinearAttention", {**linear, **gates}, "y s2", update_rule=rule, **flat
        )
    tables = {"c": _reals(2, 3, 4), "s": _reals(2, 3, 4)}
    _form("tables by position", "RotaryEmbedding", {"x": _reals(2, 3, 32), **tables}, num_heads=4)
    _form("neighbours by head", "RotaryEmbedding", {"x": _reals(2, 4, 3, 8), **tables}, interleaved=1)
    causal = {"x": _reals(2, 6, 5), "w": _reals(6, 1, 3)}
    _form("no bias", "com.microsoft::CausalConvWithState", causal, "y s")
    _form("a window of states", "com.microsoft::CausalConvWithState", causal, "y s", state_window=2)
    skipped = {"x": _reals(2, 3, 8), "k": _reals(2, 3, 8), "g": _reals(8), "b": _reals(8)}
    _form("statistics", "com.microsoft::SkipLayerNormalization", skipped, "y m d s")
    _form("no sum", "com.microsoft::SkipLayerNormalization", skipped)


def _quantised() -> None:
    x, w = _rng.integers(0, 256, (2, 6, 5, 5)).astype(np.uint8), _rng.integers(-99, 99, (8, 6, 3, 3)).astype(np.int8)
    of_x = {"x": x, "xs": np.array(0.1, np.float32), "xz": np.array(120, np.uint8)}
    of_y = {"ys": np.array(0.5, np.float32), "yz": np.array(117, np.uint8)}
    of_w = {"w": w, "ws": np.array(0.1, np.float32), "wz": np.array(3, np.int8)}
    _form("no bias", "QLinearConv", {**of_x, **of_w, **of_y})
    _form("no zero points", "ConvInteger", {"x": x, "w": w})
    last = {**of_x, **of_y, "x": x.transpose(0, 2, 3, 1).copy()}
    for operator, attributes in (("QLinearAveragePool", {"kernel_shape": [2, 2]}), ("QLinearGlobalAveragePool", {})):
        _form("channels last", f"com.microsoft::{operator}", last, channels_last=1, **attributes)
    rows = {"a": x[0, 0], "b": _rng.integers(-99, 99, (5, 4)).astype(np.int8)}
    _form("no zero points", "MatMulInteger", rows)
    by_row = {"a": x[0, 0], "as": np.abs(_reals(5)) + 1, "az": np.arange(5).astype(np.uint8)}
    by_column = {"b": rows["b"], "bs": np.abs(_reals(4)) + 1, "bz": np.arange(4).astype(np.int8)}
    _form("scales of rows and columns", "QLinearMatMul", {**by_row, **by_column, **of_y})
    _form("one zero point", "MatMulInteger", {**rows, "az": np.array(7, np.uint8), "bz": np.array(2, np.int8)})
    plain = {"x": x[0, 0], "s": np.array(0.1, np.float32)}
    _form("no zero point", "DequantizeLinear", plain)
    _form("one zero point", "DequantizeLinear", {**plain, "z": np.array(9, np.uint8)})
    reals = {"x": _reals(6, 8), "s": np.array(0.1, np.float32)}
    _form("no zero point", "QuantizeLinear", reals)
    _form("last axis", "QuantizeLinear", {**reals, "s": np.abs(_reals(8)) + 1, "z": np.zeros(8, np.int8)}, axis=-1)
    blocks = {"x": _rng.integers(0, 99, (6, 8)).astype(np.uint8), "s": np.abs(_reals(6, 4)) + 1}
    _form("blocks of the last axis", "DequantizeLinear", blocks, axis=1, block_size=2)
    for kind in (TensorProto.INT4, TensorProto.UINT4):
        low = -8 if kind == TensorProto.INT4 else 0
        tensors = [helper.make_tensor(name, kind, shape, _rng.integers(low, low + 16, shape).reshape(-1))
                   for name, shape in (("x", (48, 6)), ("z", (3, 6)))]  # fmt: skip
        table, named = (
            {"x": tensors[0], "s": np.abs(_reals(3, 6)) + 1, "z": tensors[1]},
            TensorProto.DataType.Name(kind),
        )
        _form(f"blocks of {named}", "DequantizeLinear", table, axis=0, block_size=16)
        rows = {"x": tensors[0], "i": _ints(0, 2, 1), "s": table["s"], "z": tensors[1]}
        _form(named, "com.microsoft::GatherBlockQuantized", rows, gather_axis=1, quantize_axis=0, block_size=16)
    _form("blocks", "QuantizeLinear", {**reals, "s": np.abs(_reals(2, 8)) + 1}, axis=0, block_size=3, output_dtype=2)
    _form("range", "DynamicQuantizeLinear", {"x": _reals(6, 8)}, "y s z")


for _add in (_attention, _quantised, _contractions, _recurrent, _indexing, _shapes, _normalisation, _elementwise):
    _add()
