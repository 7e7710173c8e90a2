"""Quantise a pruned model through ONNX Runtime's own tools; zeros stay zero.

    int8          weights and activations, QDQ nodes, ranges from calibration inputs: the fast form on a CPU
    int8-dynamic  weights; ranges of activations are measured at every run, so that no data are needed
    int4          weights of matrix products, in blocks: for language models, whose time goes into reading them
    fp16          weights and activations in half precision, inputs and outputs as they were: for accelerators

int8 weights are symmetric (zero point 0), and blocks of int4 have a zero point each, so that a pruned weight is exactly
zero afterwards: this is checked.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from onnxprune import model_io
from onnxprune.data.batches import batches
from onnxprune.data.calibration import read_calibration
from onnxprune.data.readers import AnyData
from onnxprune.errors import ModelError, OnnxPruneError, RecipeError, VerificationError
from onnxprune.graph.operators import operators
from onnxprune.graph.packed import ENDING
from onnxprune.graph.plain_products import plain_products
from onnxprune.graph.size import Parameter, is_parameter, parameters
from onnxprune.model_io.bodies import graphs_of
from onnxprune.runtime import Feeds, int4, int8, libraries
from onnxprune.runtime.session import one_sentence

FORMS = ("int8", "int8-dynamic", "int4", "fp16")

_MAX_BATCHES, _BATCH = 64, 8  # calibration looks at this many samples at most: their product
_NAMED = 5  # weights that stay in float, in a sentence
_LARGE = 1_900_000_000
_TURNED = "_Transposed"
_FORMS_OF_A_WEIGHT = ("", "_quantized", _TURNED, f"{_TURNED}_quantized", ENDING)  # what the tools add to its name


@dataclass(frozen=True)
class QuantisedModel:
    """A quantised model, and sentences on what became of it: what stayed in float, a newer operator set."""

    model: ir.Model
    notes: tuple[str, ...] = ()


Adapt = Callable[[ir.Model, ir.Model], str]
"""Gives a quantised model better numbers by its float model; says what it did, or nothing."""


def quantise(
    model: ir.Model,
    form: str,
    batches: Sequence[Feeds] = (),
    *,
    signed: bool = False,
    adapt: Adapt | None = None,
) -> QuantisedModel:
    """Quantise a model.

    Args:
        model: The pruned model; it is left as it is.
        form: One of `FORMS`.
        batches: Calibration inputs, needed for "int8".
        signed: Whether activations of "int8" are signed too, around 0, and biases stay in float: see `int8.static`.
        adapt: Called with the float model as it was quantised, and the quantised one.

    Raises:
        RecipeError: There is no such form, or "int8" has nothing to calibrate on.
        ModelError: ONNX Runtime cannot quantise this model, or no weight of it.
        VerificationError: A quantised weight does not keep its zeros.
    """
    if form not in FORMS:
        raise RecipeError(f"--quantize: there is no {form!r}; choose from {', '.join(FORMS)}")
    if form == "int8" and not batches:
        raise RecipeError("--quantize int8 needs inputs to calibrate on: give --calibration or --eval-data")
    with _quiet():
        try:
            with libraries.in_the_tools():
                converted = _converted(model, form, batches, signed=signed)
        except OnnxPruneError:
            raise
        except Exception as failure:  # the tools raise whatever comes up
            raise ModelError(f"ONNX Runtime cannot quantise the model to {form}: {one_sentence(failure)}") from failure
    float_model, quantised = converted.float_model, converted.model
    for changed in (float_model, quantised):
        changed.graph.meta.update(model.graph.meta)  # where it came from, which must not be written to
    said = adapt(float_model, quantised) if adapt is not None else ""
    _check_zeros(float_model, quantised)
    account = _account(quantised, form, converted.left) if form != "fp16" else []
    account += [said] if said else []
    return QuantisedModel(quantised, (*converted.notes, *account))


@dataclass(frozen=True)
class _Converted:
    """What `int8.Quantised` holds, as models in memory or with their weights where they were."""

    float_model: ir.Model
    model: ir.Model
    left: Mapping[str, str]
    notes: tuple[str, ...] = ()


def _converted(model: ir.Model, form: str, batches: Sequence[Feeds], *, signed: bool) -> _Converted:
    plain = model.clone()
    if form != "fp16":
        plain_products(plain, without_gemm=form == "int4")
    if form == "int4":
        return _Converted(plain, int4.blockwise(plain), {})
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        source = Path(name, "model.onnx")
        model_io.save(plain, source, external=model_io.serialized_size(model) > _LARGE, durable=False)
        found = _converter(form, signed)(source, batches)
    return _Converted(
        model_io.load_any(found.float_model), model_io.load_any(found.model), found.left, tuple(found.notes)
    )


def calibration_batches(data: AnyData, model: ir.Model) -> list[Feeds]:
    """Read calibration inputs, as `data.open_data` takes them. Labels are left out.

    Raises:
        DataError: They cannot be read, or an input has no samples.
    """
    inputs = read_calibration(data, model, _MAX_BATCHES * _BATCH).inputs
    return batches(model, inputs, _BATCH)[:_MAX_BATCHES]


def _half(source: Path, batches: Sequence[Feeds]) -> int8.Quantised:
    quantised = {name.split("::")[-1] for name, operator in operators().items() if operator.knows_zero_points}
    blocked = [*DEFAULT_OP_BLOCK_LIST, *sorted(quantised)]  # scales of a model that is quantised already stay
    proto = onnx.load(source)
    converted = convert_float_to_float16(onnx.load(source), keep_io_types=True, op_block_list=blocked)
    return int8.Quantised(proto, converted, {})


_Converter = Callable[[Path, Sequence[Feeds]], int8.Quantised]
_CONVERTERS: Mapping[str, _Converter] = {
    "int8": int8.static, "int8-dynamic": int8.dynamic, "fp16": _half,
}  # fmt: skip


def _converter(form: str, signed: bool) -> _Converter:
    return partial(int8.static, signed=True) if form == "int8" and signed else _CONVERTERS[form]


def _account(model: ir.Model, form: str, left: Mapping[str, str]) -> list[str]:
    """Say which weights are integers now and which are not; nothing where all are.

    Raises:
        ModelError: None is.
    """
    done, left_in_float = 0, []
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or not is_parameter(value) or sum(n > 1 for n in tensor.shape.numpy()) < 2:
                continue
            if tensor.dtype.is_floating_point():
                readers = sorted({node.op_type for node, _ in value.uses()})
                left_in_float.append(f"'{value.name}' ({', '.join(readers) or 'read by nothing'})")
            else:
                done += 1
    if not left_in_float:
        return []
    listed = ", ".join(left_in_float[:_NAMED]) + (
        f" and {len(left_in_float) - _NAMED} more" if len(left_in_float) > _NAMED else ""
    )
    integers = form.removesuffix("-dynamic")
    if not done:
        raise ModelError(
            f"--quantize: ONNX Runtime's quantiser makes none of the {len(left_in_float)} weights {integers} "
            f"({listed}): leave --quantize out, or use fp16"
        )
    why = "".join(f"; {node}: {reason}" for node, reason in left.items())
    return [f"{done} of {done + len(left_in_float)} weights are {integers}; left in float: {listed}{why}"]


def _check_zeros(plain: ir.Model, quantised: ir.Model) -> None:
    """No zero may be lost, weight by weight as far as the tools keep their names, else of all others together.

    Args:
        plain: The float model that was quantised, after the tools' own preparation, which folds and turns weights.
        quantised: What came out.
    """
    before = {str(p.tensor.name): p for p in parameters(plain) if len(p.tensor.shape) > 1}
    after = {str(p.tensor.name): p for p in parameters(quantised) if len(p.tensor.shape) > 1}
    lost, others = 0, [0, 0]
    for name, parameter in before.items():
        # A weight of two readers may be there in several forms: one that is turned, or in float for one of them.
        forms = {ending: after.pop(name + ending) for ending in _FORMS_OF_A_WEIGHT if name + ending in after}
        if not forms:
            others[0] += parameter.nonzero()
        lost += sum(_lost_zeros(parameter, form, turned=_TURNED in ending) for ending, form in forms.items())
    others[1] = sum(parameter.nonzero() for parameter in after.values())
    lost += max(0, others[1] - others[0])
    if lost:
        raise VerificationError(f"quantising would turn {lost:,} zeros of weights into other numbers")


def _lost_zeros(before: Parameter, now: Parameter, *, turned: bool) -> int:
    """How many zeros of a weight are other numbers in what the tools made of it, which may be its transpose."""
    zero, kept = before.zeros(), now.zeros()
    zero = zero.T if turned else zero
    if now.layout is not None and before.layout is None:  # [outputs, blocks, inputs of a block]
        kept = kept.reshape(now.layout.outputs, -1)[:, : now.layout.inputs].T.reshape(zero.shape)
    if zero.shape == kept.shape:
        return int(np.count_nonzero(zero & ~kept))
    return max(0, now.nonzero() - before.nonzero())  # stored in another layout


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
