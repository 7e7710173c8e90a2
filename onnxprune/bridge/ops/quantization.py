"""QuantizeLinear, DequantizeLinear and the integer operators, with straight-through gradients.

Quantised values are carried as whole numbers in float tensors, so that rounding passes gradients on; they become
integer tensors only where something else than a quantised operator reads them. Sums are made in float64, which holds
every sum of 8-bit products exactly.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from onnxprune.bridge.convert import along, carry, dequantize, held_in, integer_range, round_through, straight_through
from onnxprune.bridge.ops.casting import to_small_float
from onnxprune.bridge.ops.convolution import conv
from onnxprune.bridge.registry import MICROSOFT, op


def _type_of_input(index: int) -> Any:
    """The output has the type of the zero point at this input, uint8 if there is none."""

    def quantizes(attributes: dict[str, Any], types: list[ir.DataType | None]) -> ir.DataType:
        known = types[index] if index < len(types) else None
        return known or ir.DataType.UINT8

    return quantizes


def _linear_type(attributes: dict[str, Any], types: list[ir.DataType | None]) -> ir.DataType:
    known = types[2] if len(types) > 2 else None
    return known or ir.DataType(attributes.get("output_dtype") or ir.DataType.UINT8)


def _always(dtype: ir.DataType) -> Any:
    return lambda attributes, types: dtype


def _levels(x: torch.Tensor, name: str, saturate: bool) -> torch.Tensor:
    """x as values of a quantised type, carried in float, with a straight-through gradient."""
    if name.startswith("FLOAT"):
        return straight_through(to_small_float(x.detach(), name, saturate).to(x.dtype), x)
    low, high = integer_range(name)
    return round_through(x).clamp(low, high)


@op("QuantizeLinear", fixed=(1, 2), quantizes=_linear_type)
def quantize_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    input_types: tuple[str | None, ...] = (),
) -> torch.Tensor:
    """round(x / scale) + zero_point, halves to even, saturated to the type of the zero point."""
    known = input_types[2] if len(input_types) > 2 else None
    name = known or ir.DataType(output_dtype or ir.DataType.UINT8).name
    work = torch.float32 if x.dtype in (torch.float16, torch.bfloat16, torch.int32) else x.dtype
    work = held_in(ir.DataType(precision).name) if precision else work
    scale = along(scale, x, axis, block_size)  # type: ignore[assignment]
    zero = along(zero_point, x, axis, block_size)
    scaled = x.to(work) / scale.to(work)
    if name.startswith("FLOAT"):
        return _levels(scaled, name, bool(saturate))
    shifted = round_through(scaled) if zero is None else round_through(scaled) + zero.to(work)
    return _levels(shifted, name, True)


@op("DequantizeLinear", fixed=(1, 2), quantized=(0,), weights={0: (1, 2)})
def dequantize_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> torch.Tensor:
    """(x - zero_point) * scale, in the type of the scale or of output_dtype."""
    wide = x.float() if x.element_size() == 1 and x.is_floating_point() else carry(x)
    zero = zero_point
    if zero is not None and zero.is_floating_point() and zero.element_size() == 1:
        zero = zero.float()
    result = dequantize(wide, scale.float() if scale.element_size() == 1 else scale, zero, axis, block_size)
    return result.to(held_in(ir.DataType(output_dtype).name)) if output_dtype else result


@op("DynamicQuantizeLinear", quantizes=_always(ir.DataType.UINT8), multiple=True)
def dynamic_quantize_linear(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """To uint8 by the range of x itself (which always contains zero). Also gives the scale and the zero point."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round((-low / scale).clamp(0, 255))
    return (round_through(x / scale) + zero).clamp(0, 255), scale, zero.to(torch.uint8)


def _centred(x: torch.Tensor, zero: torch.Tensor | None, axis: int | None = None) -> torch.Tensor:
    wide = carry(x).double()
    if zero is None:
        return wide
    if zero.numel() == 1:
        return wide - zero.reshape(()).double()
    if zero.dim() == 1 and axis is not None:
        return wide - along(zero, wide, axis).double()  # type: ignore[union-attr]
    return wide - zero.double()


@op("ConvInteger", fixed=(2, 3), quantized=(0, 1), quantizes=_always(ir.DataType.INT32))
def conv_integer(
    x: torch.Tensor,
    w: torch.Tensor,
    x_zero_point: torch.Tensor | None = None,
    w_zero_point: torch.Tensor | None = None,
    **attributes: Any,
) -> torch.Tensor:
    """Convolution of integers, exact in int32; padding counts as the zero point."""
    return conv(_centred(x, x_zero_point), _centred(w, w_zero_point, 0), None, **attributes)


@op("MatMulInteger", fixed=(2, 3), quantized=(0, 1), quantizes=_always(ir.DataType.INT32))
def matmul_integer(
    a: torch.Tensor,
    b: torch.Tensor,
    a_zero_point: torch.Tensor | None = None,
    b_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """Matrix product of integers, exact in int32; zero points per tensor, per row of a, or per column of b."""
    return torch.matmul(_centred(a, a_zero_point, -2), _centred(b, b_zero_point, -1))


def _requantized(real: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, name: str | None) -> torch.Tensor:
    """real / scale to the output's levels, in float32 as ONNX Runtime does it, so that ties fall the same way."""
    return _shifted(real.float() / scale.float(), zero, name)


def _shifted(scaled: torch.Tensor, zero: torch.Tensor | None, name: str | None) -> torch.Tensor:
    levels = round_through(scaled)
    return _levels(levels if zero is None else levels + zero.float(), name or "UINT8", True)


@op("QLinearConv", fixed=(1, 2, 4, 5, 6, 7), quantized=(0, 3, 8), weights={3: (4, 5)}, quantizes=_type_of_input(7))
def qlinear_conv(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    bias: torch.Tensor | None = None,
    input_types: tuple[str | None, ...] = (),
    **attributes: Any,
) -> torch.Tensor:
    """Convolution of quantised values; the int32 bias has scale x_scale * w_scale."""
    wide = None if bias is None else carry(bias).double()
    total = conv(_centred(x, x_zero_point), _centred(w, w_zero_point, 0), wide, **attributes)
    scale = x_scale * along(w_scale, total, 1) / y_scale  # type: ignore[operator]
    return _shifted(total.float() * scale.float(), y_zero_point, input_types[7])


@op("QLinearMatMul", fixed=(1, 2, 4, 5, 6, 7), quantized=(0, 3), weights={3: (4, 5)}, quantizes=_type_of_input(7))
def qlinear_matmul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    input_types: tuple[str | None, ...] = (),
) -> torch.Tensor:
    """Matrix product of quantised values; parameters per tensor, per row of a, or per column of b."""
    total = torch.matmul(_centred(a, a_zero_point, -2), _centred(b, b_zero_point, -1))
    scale = along(a_scale, total, -2) * along(b_scale, total, -1) / y_scale  # type: ignore[operator]
    return _shifted(total.float() * scale.float(), y_zero_point, input_types[7])


def _real(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
    return _centred(x, zero).float() * scale.float()


@op("QLinearAdd", domain=MICROSOFT, fixed=(1, 2, 4, 5, 6, 7), quantized=(0, 3), quantizes=_type_of_input(7))
def qlinear_add(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor | None,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor | None,
    c_scale: torch.Tensor,
    c_zero_point: torch.Tensor | None = None,
    input_types: tuple[str | None, ...] = (),
) -> torch.Tensor:
    """Sum of quantised values, in ONNX Runtime's order of operations, so that ties fall the same way."""
    left, right = (a_scale / c_scale).float(), (b_scale / c_scale).float()
    zero_a, zero_b, zero_c = (0.0 if z is None else z.float() for z in (a_zero_point, b_zero_point, c_zero_point))
    fixed = zero_c - (left * zero_a + right * zero_b)
    first = (carry(a).double() * left + fixed).float()
    levels = round_through((carry(b).double() * right + first).float())
    return _levels(levels, _name(input_types, 7, 0) or "UINT8", True)


@op("QLinearMul", domain=MICROSOFT, fixed=(1, 2, 4, 5, 6, 7), quantized=(0, 3), quantizes=_type_of_input(7))
def qlinear_mul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor | None,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor | None,
    c_scale: torch.Tensor,
    c_zero_point: torch.Tensor | None = None,
    input_types: tuple[str | None, ...] = (),
) -> torch.Tensor:
    """Product of quantised values."""
    product = _real(a, a_scale, a_zero_point) * _real(b, b_scale, b_zero_point)
    return _requantized(product, c_scale, c_zero_point, _name(input_types, 7, 0))


def _name(types: tuple[str | None, ...], index: int, otherwise: int) -> str | None:
    known = types[index] if index < len(types) else None
    return known or types[otherwise]


def _qlinear_unary(function: Any) -> Any:
    def run(
        x: torch.Tensor,
        x_scale: torch.Tensor,
        x_zero_point: torch.Tensor | None,
        y_scale: torch.Tensor,
        y_zero_point: torch.Tensor | None = None,
        input_types: tuple[str | None, ...] = (),
        **attributes: Any,
    ) -> torch.Tensor:
        return _requantized(
            function(_real(x, x_scale, x_zero_point), **attributes), y_scale, y_zero_point, _name(input_types, 4, 0)
        )

    return run


def _register_unary() -> None:
    """Quantised operators of one input: worked out in real numbers between dequantisation and quantisation."""
    from onnxprune.bridge.ops.activation import leaky_relu, sigmoid, softmax
    from onnxprune.bridge.ops.pooling import average_pool

    def global_average_pool(x: torch.Tensor, channels_last: int = 0) -> torch.Tensor:
        axes = tuple(range(1, x.dim() - 1)) if channels_last else tuple(range(2, x.dim()))
        return x.mean(dim=axes, keepdim=True)

    def average(x: torch.Tensor, channels_last: int = 0, **attributes: Any) -> torch.Tensor:
        y = average_pool(x.movedim(-1, 1) if channels_last else x, **attributes)
        return y.movedim(1, -1) if channels_last else y

    def softmax_microsoft(x: torch.Tensor, axis: int = -1, opset: int = 13) -> torch.Tensor:
        return softmax(x, axis)

    functions = {
        "QLinearLeakyRelu": leaky_relu, "QLinearSigmoid": sigmoid, "QLinearSoftmax": softmax_microsoft,
        "QLinearGlobalAveragePool": global_average_pool, "QLinearAveragePool": average,
    }  # fmt: skip
    for name, function in functions.items():
        run = _qlinear_unary(function)
        run.__name__ = run.__qualname__ = name.lower()
        run.__doc__ = f"{name}: real numbers in between."
        globals()[run.__name__] = run
        op(name, domain=MICROSOFT, fixed=(1, 2, 3, 4), quantized=(0,), quantizes=_type_of_input(4))(run)


_register_unary()


_VALUES = range(2, 1024, 3)
"""Where QLinearConcat has values; a scale and a zero point follow each."""


@op(
    "QLinearConcat",
    domain=MICROSOFT,
    fixed=set(range(1024)) - set(_VALUES),
    quantized=_VALUES,
    quantizes=_type_of_input(1),
)
def qlinear_concat(
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    *triples: torch.Tensor,
    axis: int,
    input_types: tuple[str | None, ...] = (),
) -> torch.Tensor:
    """Quantised values of different scales, after one another in one scale."""
    parts = [_real(*triples[i : i + 3]) for i in range(0, len(triples), 3)]
    return _requantized(torch.cat(parts, dim=axis), y_scale, y_zero_point, input_types[1])


def _gemm_type(attributes: dict[str, Any], types: list[ir.DataType | None]) -> ir.DataType | None:
    """None, for a float result, where no output scale is given."""
    if len(types) <= 7:
        return None
    return (types[8] if len(types) > 8 else None) or types[0] or ir.DataType.UINT8


@op(
    "QGemm",
    domain=MICROSOFT,
    fixed=(1, 2, 4, 5, 7, 8),
    quantized=(0, 3, 6),
    weights={3: (4, 5)},
    quantizes=_gemm_type,
)
def qgemm(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor,
    c: torch.Tensor | None = None,
    y_scale: torch.Tensor | None = None,
    y_zero_point: torch.Tensor | None = None,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    input_types: tuple[str | None, ...] = (),
) -> torch.Tensor:
    """Gemm of quantised values; without y_scale the result is float."""
    left = _centred(a, a_zero_point)
    right = _centred(b, b_zero_point, 0 if transB else 1)
    total = torch.matmul(left.t() if transA else left, right.t() if transB else right)
    total = total if c is None else total + carry(c).double()
    real = total * (alpha * a_scale.double() * b_scale.double())
    if y_scale is None:
        return real.to(a_scale.dtype)
    return _requantized(real, y_scale, y_zero_point, _name(input_types, 8, 0))


@op("MatMulIntegerToFloat", domain=MICROSOFT, fixed=(2, 3, 4, 5), quantized=(0, 1))
def matmul_integer_to_float(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    a_zero_point: torch.Tensor | None = None,
    b_zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Matrix product of quantised values as real numbers."""
    total = torch.matmul(_centred(a, a_zero_point), _centred(b, b_zero_point, -1))
    real = (total * a_scale.double() * b_scale.double()).to(a_scale.dtype)
    return real if bias is None else real + bias


@op("DynamicQuantizeMatMul", domain=MICROSOFT, fixed=(2, 3), quantized=(1,))
def dynamic_quantize_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """a quantised by its own range, times quantised b, as real numbers."""
    levels, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(levels, b, scale, b_scale, zero, b_zero_point, bias)


op("QuantizeLinear", domain=MICROSOFT, fixed=(1, 2), quantizes=_linear_type)(quantize_linear)
op("DequantizeLinear", domain=MICROSOFT, fixed=(1, 2), quantized=(0,), weights={0: (1, 2)})(dequantize_linear)
