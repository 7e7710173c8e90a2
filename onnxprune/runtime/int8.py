"""int8 by ONNX Runtime's own quantiser, which fails on whole models for one node: that node stays in float instead.

    static      activations and weights, QDQ nodes, ranges from calibration inputs
    dynamic     weights; ranges of activations are measured at every run

Both read a model file and write another, as the quantiser does. A node that it cannot take, or whose quantised form
ONNX Runtime does not load or run, is found by halving the nodes that have weights.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnxprune.graph.operators import key, operator_named, operators
from onnxprune.model_io.protobuf import default_opset
from onnxprune.model_io.upgrade import upgrade_opset
from onnxprune.runtime import Feeds
from onnxprune.runtime.session import make_session, one_sentence, run

_PER_CHANNEL_OPSET = 13  # from here on DequantizeLinear has an axis
_OLDEST = 10  # that has QuantizeLinear
_NAMELESS = "onnxprune_nameless"
_Quantise = Callable[[Sequence[str]], onnx.ModelProto]


class Quantised(NamedTuple):
    """A quantised model.

    Attributes:
        float_model: The model that was quantised, after ONNX Runtime's own preparation.
        model: What came out.
        left: Nodes that had to stay in float ("ConvTranspose up"), with the reason.
        notes: Sentences on what else changed.
    """

    float_model: onnx.ModelProto
    model: onnx.ModelProto
    left: Mapping[str, str]
    notes: tuple[str, ...] = ()


def static(source: Path, batches: Sequence[Feeds], *, signed: bool = False) -> Quantised:
    """Quantise weights and activations.

    Args:
        source: A model file in a folder of its own.
        batches: Inputs that the ranges of activations are taken from.
        signed: Whether activations are signed too, with the zero point 0, biases stay in float, and only what
            multiplies is quantised. TensorRT takes no other int8 (engines/tensorrt.py).
    """
    notes = _lift(source)
    prepared = source.with_name("prepared.onnx")
    # BatchNormalization goes into the convolution before it, where a BatchNormalization of its own would stay float.
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    _untie_biases(prepared)
    target, cache = source.with_name("quantised.onnx"), source.with_name("ranges.json")
    again: dict[str, Any] = {}
    if "calibration_cache_path" in inspect.signature(quantize_static).parameters:
        again = {"calibration_cache_path": str(cache)}  # later tries need not run the inputs again

    def quantise(excluded: Sequence[str]) -> onnx.ModelProto:
        quantize_static(
            str(prepared),
            str(target),
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=(default_opset(onnx.load(prepared, load_external_data=False)) or 0) >= _PER_CHANNEL_OPSET,
            # Unsigned times signed is 2.4 times as fast on x86 as signed times signed.
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(excluded),
            **_signed() if signed else _UNSIGNED,
            **again,
        )
        return onnx.load(target)

    return _all_but_the_bad(prepared, quantise, batches)._replace(notes=notes)


_UNSIGNED: Mapping[str, Any] = {"extra_options": {"ActivationSymmetric": False, "WeightSymmetric": True}}


def _signed() -> dict[str, Any]:
    """Settings of `quantize_static` for symmetric activations and float biases."""
    multiplies = [name for name, operator in operators().items() if operator.divisible]
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    return {
        "op_types_to_quantize": multiplies,
        "extra_options": {**options, "OpTypesToExcludeOutputQuantization": multiplies},
    }


def dynamic(source: Path, batches: Sequence[Feeds]) -> Quantised:
    """Quantise weights; `source` is a model file in a folder of its own."""
    notes = _lift(source)
    target = source.with_name("quantised.onnx")

    def quantise(excluded: Sequence[str]) -> onnx.ModelProto:
        quantize_dynamic(
            str(source),
            str(target),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(excluded),
            extra_options={"WeightSymmetric": True},
        )
        return onnx.load(target)

    return _all_but_the_bad(source, quantise, batches)._replace(notes=notes)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out batches one by one, as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Sequence[Feeds]) -> None:
        self.batches: Iterator[Feeds] = iter(batches)

    def get_next(self) -> Mapping[str, npt.NDArray[Any]] | None:
        return next(self.batches, None)


def _lift(path: Path) -> tuple[str, ...]:
    """Lift a model whose operator set has no quantised operators; return the sentence that says so.

    Raises:
        ModelError: It cannot be lifted.
    """
    opset = default_opset(onnx.load(path, load_external_data=False))
    if opset is None or opset >= _OLDEST:
        return ()
    onnx.save(upgrade_opset(onnx.load(path), _PER_CHANNEL_OPSET, "the model"), path)
    return (f"for int8 the model was lifted from opset {opset}, which has no quantised operators, to 13",)


# -- nodes that cannot be quantised -----------------------------------------------------------------------------------


def _all_but_the_bad(path: Path, quantise: _Quantise, batches: Sequence[Feeds]) -> Quantised:
    """Quantise the model of a file; where that fails, without the nodes that make it fail.

    Raises:
        Exception: Whatever the quantiser raises where leaving out nodes does not help.
    """
    try:
        return Quantised(onnx.load(path), _that_runs(quantise, (), batches), {})
    except Exception as failure:
        first = failure
    model = onnx.load(path)
    nodes = _name_nodes_with_weights(model)
    onnx.save(model, path)
    reasons: dict[str, str] = {}

    def works(these: Sequence[str]) -> bool:
        try:
            _that_runs(quantise, [name for name in nodes if name not in these], batches)
        except Exception as failure:
            reasons.update(dict.fromkeys(these, one_sentence(failure)))
            return False
        return True

    bad = _bad_ones(list(nodes), works) if works([]) else []
    if not bad:
        raise first
    quantised = _that_runs(quantise, bad, batches)
    for graph in (model.graph, quantised.graph):
        for node in graph.node:
            if node.name.startswith(_NAMELESS):
                node.name = ""
    left = {nodes[name]: f"ONNX Runtime cannot quantise it ({reasons[name]})" for name in bad}
    return Quantised(model, quantised, left)


def _that_runs(quantise: _Quantise, excluded: Sequence[str], batches: Sequence[Feeds]) -> onnx.ModelProto:
    quantised = quantise(excluded)
    session = make_session(quantised.SerializeToString(), optimize="all")
    for feeds in batches[:1]:
        run(session, feeds)
    return quantised


def _bad_ones(names: list[str], works: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return names without which the rest works, found by halving; all of them where only all together fail."""
    if works(names):
        return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    return [*_bad_ones(names[:half], works), *_bad_ones(names[half:], works)] or names


def _name_nodes_with_weights(model: onnx.ModelProto) -> dict[str, str]:
    """Give every node that reads a constant a name, and return these names with what the nodes are called."""
    constants = {tensor.name for tensor in model.graph.initializer}
    taken = {node.name for node in model.graph.node}
    fresh = (name for i in itertools.count() if (name := f"{_NAMELESS}_{i}") not in taken)
    named = {}
    for node in model.graph.node:
        if any(name in constants for name in node.input):
            called = f"{node.op_type} '{node.name or node.output[0]}'"
            node.name = node.name or next(fresh)
            named[node.name] = called
    return named


def _untie_biases(path: Path) -> None:
    """Give each node a bias of its own, since its scale follows from the node's input, and of one axis.

    The tools copy shared ones too, under a name with a number behind it, which another tensor may bear already; on a
    row, shape (1, n), of a Gemm they fail.
    """
    model = onnx.load(path)
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    biases = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        operator = operator_named(key(node.domain, node.op_type))
        if operator.kind not in ("conv", "fc") or operator.biases != (2,):
            continue
        if len(node.input) < 3 or node.input[2] not in biases:
            continue
        bias = biases[node.input[2]]
        is_row = len(bias.dims) == 2 and bias.dims[0] == 1
        if bias.name in seen or is_row:
            copy = onnx.TensorProto()
            copy.CopyFrom(bias)
            copy.name = next(n for i in itertools.count(1) if (n := f"{bias.name}_copy{i}") not in taken)
            if is_row:
                del copy.dims[0]
            taken.add(copy.name)
            model.graph.initializer.append(copy)
            node.input[2] = copy.name
        seen.add(bias.name)
    onnx.save(model, path)
