"""Quantise a pruned model through ONNX Runtime's own tools; zeros stay zero.

    int8          weights and activations, QDQ nodes, ranges from calibration inputs: the fast form on a CPU
    int8-dynamic  weights; ranges of activations are measured at every run, so that no data are needed
    fp16          weights and activations in half precision, inputs and outputs as they were: for accelerators

int8 weights are symmetric (zero point 0), so that a pruned weight is exactly zero afterwards: this is checked.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from onnxprune import model_io
from onnxprune.data.batches import batches
from onnxprune.data.calibration import read_calibration
from onnxprune.data.readers import AnyData
from onnxprune.errors import ModelError, RecipeError, VerificationError
from onnxprune.graph.operators import key, operator_named, operators
from onnxprune.graph.plain_products import plain_products
from onnxprune.graph.size import parameters
from onnxprune.runtime import Feeds
from onnxprune.runtime.session import one_sentence

FORMS = ("int8", "int8-dynamic", "fp16")

_MAX_BATCHES, _BATCH = 64, 8  # calibration looks at this many samples at most: their product
_PER_CHANNEL_OPSET = 13  # from here on DequantizeLinear has an axis
_LARGE = 1_900_000_000


def quantise(model: ir.Model, form: str, batches: Sequence[Feeds] = ()) -> ir.Model:
    """Quantise a model.

    Args:
        model: The pruned model; it is left as it is.
        form: One of `FORMS`.
        batches: Calibration inputs, needed for "int8".

    Raises:
        RecipeError: There is no such form, or "int8" has nothing to calibrate on.
        ModelError: ONNX Runtime cannot quantise this model.
        VerificationError: A quantised weight does not keep its zeros.
    """
    if form not in FORMS:
        raise RecipeError(f"--quantize: there is no {form!r}; choose from {', '.join(FORMS)}")
    if form == "int8" and not batches:
        raise RecipeError("--quantize int8 needs inputs to calibrate on: give --calibration or --eval-data")
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name, _quiet():
        folder = Path(name)
        source = folder / "model.onnx"
        large = model_io.serialized_size(model) > _LARGE
        plain = model.clone()
        if form != "fp16":
            plain_products(plain)
        model_io.save(plain, source, external=large, durable=False)
        try:
            proto = _CONVERTERS[form](source, folder / "quantised.onnx", batches)
        except Exception as failure:  # the tools raise whatever comes up
            raise ModelError(f"ONNX Runtime cannot quantise the model to {form}: {one_sentence(failure)}") from failure
    found = model_io.load_any(proto)
    found.graph.meta.update(model.graph.meta)  # where it came from, which must not be written to
    _check_zeros(model, found)
    return found


def calibration_batches(data: AnyData, model: ir.Model) -> list[Feeds]:
    """Read calibration inputs, as `data.open_data` takes them. Labels are left out.

    Raises:
        DataError: They cannot be read, or an input has no samples.
    """
    inputs = read_calibration(data, model, _MAX_BATCHES * _BATCH).inputs
    return batches(model, inputs, _BATCH)[:_MAX_BATCHES]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out batches one by one, as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Sequence[Feeds]) -> None:
        self.batches: Iterator[Feeds] = iter(batches)

    def get_next(self) -> Mapping[str, npt.NDArray[Any]] | None:
        return next(self.batches, None)


def _static(source: Path, target: Path, batches: Sequence[Feeds]) -> onnx.ModelProto:
    prepared = source.with_name("prepared.onnx")
    # BatchNormalization goes into the convolution before it, where a BatchNormalization of its own would stay float.
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    _untie_biases(prepared)
    quantize_static(
        str(prepared),
        str(target),
        _Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=_opset(prepared) >= _PER_CHANNEL_OPSET,
        activation_type=QuantType.QUInt8,  # x86 multiplies unsigned by signed: 2.4 times the speed of signed by signed
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    return onnx.load(target)


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


def _dynamic(source: Path, target: Path, batches: Sequence[Feeds]) -> onnx.ModelProto:
    quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, extra_options={"WeightSymmetric": True})
    return onnx.load(target)


def _half(source: Path, target: Path, batches: Sequence[Feeds]) -> onnx.ModelProto:
    quantised = {name.split("::")[-1] for name, operator in operators().items() if operator.knows_zero_points}
    blocked = [*DEFAULT_OP_BLOCK_LIST, *sorted(quantised)]  # scales of a model that is quantised already stay
    return convert_float_to_float16(onnx.load(source), keep_io_types=True, op_block_list=blocked)


_CONVERTERS: Mapping[str, Callable[[Path, Path, Sequence[Feeds]], onnx.ModelProto]] = {
    "int8": _static,
    "int8-dynamic": _dynamic,
    "fp16": _half,
}


def _opset(path: Path) -> int:
    opsets = onnx.load(path, load_external_data=False).opset_import
    return max((o.version for o in opsets if o.domain in ("", "ai.onnx")), default=0)


def _check_zeros(plain: ir.Model, quantised: ir.Model) -> None:
    """No zero may be lost; tensors are counted together, since the tools rename and fold them."""
    before, after = (weights_that_count(m) for m in (plain, quantised))
    if after > before:
        raise VerificationError(f"quantising would turn {after - before:,} zeros of weights into other numbers")


def weights_that_count(model: ir.Model) -> int:
    """Return how many elements of weights with two or more dimensions are not zero; biases are left out."""
    return sum(found.nonzero() for found in parameters(model) if len(found.tensor.shape) > 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools log advice on the root logger, which is not ours to show."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    ort.set_default_logger_severity(3)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)
        ort.set_default_logger_severity(2)
