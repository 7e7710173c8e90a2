"""Weights in a few bits, with a scale and perhaps a zero point for each block of inputs of an output.

A number is (q - zero point) * scale. Without zero points these are in the middle of what the bits can hold, 8 of 4
bits. The first number of a byte is in its lowest bits. MatMulNBits holds [outputs, blocks, bytes of a block], QMoE
[experts, outputs, bytes of an output], GatherBlockQuantized [rows, bytes of a row], whose numbers are called inputs
here as well. (ONNX Runtime's ContribOperators.md.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.linear import source_of

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]

ENDING = "_Q4"
"""What ONNX Runtime's quantiser adds to the name of a weight of 4 bits."""


@dataclass(frozen=True, eq=False)
class Packed:
    """How a packed weight is read.

    Attributes:
        scales: One for each block, [outputs, blocks] or flat.
        zero_points: Packed in the same bits, or None.
        bits: Of one number.
        block: How many numbers share a scale.
        inputs: How many numbers of an output count; the last block may hold more.
        outputs, blocks: How many there are, over all experts.
        lead: The extents before the bytes of an output, [experts, outputs] or [rows]; empty where the weight has an
            axis of blocks.
    """

    scales: ir.Value
    zero_points: ir.Value | None
    bits: int
    block: int
    inputs: int
    outputs: int
    blocks: int
    lead: tuple[int, ...] = ()

    @property
    def per_byte(self) -> int:
        """How many numbers share a byte."""
        return 8 // self.bits

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers of the weight, by output and block; where it has no axis of blocks by output and byte."""
        if self.lead:
            return *self.lead, self.inputs // self.per_byte, self.per_byte
        return self.outputs, self.blocks, self.block

    def extent(self, axis: int) -> int:
        """Return how many outputs or inputs an axis of the tensor stands for."""
        return self.inputs if axis == (len(self.lead) or 1) else self.shape[axis]

    def numbers(self, content: Array) -> npt.NDArray[np.float32]:
        """Return the numbers that the bytes stand for, of `shape`; 0 behind the last that counts."""
        scales = _content(self.scales).astype(np.float32).reshape(self.outputs, self.blocks, 1)
        q = unpacked(content.astype(np.uint8), self.bits).astype(np.float32).reshape(self.outputs, self.blocks, -1)
        numbers = ((q - self.points()[..., None]) * scales).reshape(self.outputs, -1)
        numbers[:, self.inputs :] = 0
        return numbers.reshape(self.shape).astype(np.float32, copy=False)

    def points(self) -> Bytes:
        """Return the zero point of each block, [outputs, blocks]."""
        if self.zero_points is None:
            return np.full((self.outputs, self.blocks), 1 << (self.bits - 1), np.uint8)
        content = _content(self.zero_points).astype(np.uint8)
        if len(self.lead) == content.ndim == 2:  # one for each output; those of an expert lie one behind the other
            return unpacked(content, self.bits)[:, : self.lead[1]].reshape(-1, 1)
        return unpacked(content.reshape(self.outputs, -1), self.bits)[:, : self.blocks]

    def zeros(self) -> Bytes:
        """Return the byte that holds nothing but zero points, for each block or byte, to broadcast over the weight."""
        each = packed(np.repeat(self.points()[..., None], self.per_byte, axis=-1), self.bits)
        if not self.lead:
            return each
        return np.repeat(each[..., 0], self.block // self.per_byte, axis=1).reshape(self.shape[:-1])


def layout_of(node: ir.Node, index: int = 1) -> Packed | str:
    """Return how a node reads its packed weight; where it reads it in another way, what that is.

    Args:
        node: A MatMulNBits, QMoE or GatherBlockQuantized.
        index: The input that is the weight: 1 of MatMulNBits; 2, 5 and 8 of QMoE; 0 of GatherBlockQuantized.
    """
    match node.op_type:
        case "QMoE":
            return _of_experts(node, index)
        case "GatherBlockQuantized":
            return _of_table(node)
        case _:
            return _of_matrix(node)


def _of_matrix(node: ir.Node) -> Packed | str:
    w, scales, points, order = (node.inputs[i] if i < len(node.inputs) else None for i in (1, 2, 3, 4))
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0)
    if order is not None:
        return "its inputs are in an order of their own"
    if w is None or scales is None or not _constant(w, scales, points):
        return "its weights are not constant"
    shape = w.const_value.shape.numpy() if w.const_value is not None else ()
    if bits not in (2, 4, 8) or not block or len(shape) != 3 or shape[2] * 8 != block * bits:
        return "its weights are packed in blocks of bits of another layout"
    if points is not None and points.dtype != ir.DataType.UINT8:
        return "its zero points are no integers"
    return Packed(scales, points, bits, block, node.attributes.get_int("K", 0), int(shape[0]), int(shape[1]))


def _of_experts(node: ir.Node, index: int) -> Packed | str:
    w, scales = (node.inputs[i] if i < len(node.inputs) else None for i in (index, index + 1))
    number = (index + 1) // 3  # of the projection: fc1, fc2 or fc3
    points = node.inputs[10 + number] if len(node.inputs) > 10 + number else None
    if node.attributes.get_string("quant_type", "int") != "int":
        return "its weights are no integers"
    if node.attributes.get_int("weights_prepacked", -1) == 1:
        return "its weights are laid out for one kernel"
    bits = node.attributes.get_int(f"fc{number}_expert_weight_bits", node.attributes.get_int("expert_weight_bits", 4))
    if w is None or scales is None or not _constant(w, scales, points):
        return "its weights are not constant"
    experts, outputs, width = (int(n) for n in _content(w).shape)
    if bits not in (2, 4, 8):
        return f"numbers of {bits} bits lie across bytes"
    inputs = width * 8 // bits
    block = node.attributes.get_int("block_size", 0) or inputs
    if inputs % block or block * bits % 8 or _content(scales).size != experts * outputs * (inputs // block):
        return "its weights are packed in blocks of bits of another layout"
    return Packed(scales, points, bits, block, inputs, experts * outputs, inputs // block, (experts, outputs))


def _of_table(node: ir.Node) -> Packed | str:
    table, scales = source_of(node.inputs[0]), node.inputs[2]
    points = node.inputs[3] if len(node.inputs) > 3 else None
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
    if table is None or scales is None or not _constant(table, scales, points):
        return "its table is not constant"
    shape = tuple(int(n) for n in _content(table).shape)
    axes = [node.attributes.get_int(name, default) for name, default in (("gather_axis", 0), ("quantize_axis", 1))]
    if table.dtype != ir.DataType.UINT8 or axes[0] != 0 or axes[1] not in (1, -1) or len(_content(scales).shape) != 2:
        return "its table is not in rows of bytes"
    blocks, per_byte = int(_content(scales).shape[1]), 8 // bits
    inputs = math.prod(shape[1:]) * per_byte
    if inputs != blocks * block or block % per_byte:
        return "its last block is not full"
    return Packed(scales, points, bits, block, inputs, shape[0], blocks, shape[:1] if len(shape) == 2 else ())


def _constant(*values: ir.Value | None) -> bool:
    return all(v is None or v.is_initializer() and v.const_value is not None for v in values)


def _content(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def unpacked(content: Bytes, bits: int) -> Bytes:
    """Return the numbers in the bytes of the last axis, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (content[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return numbers.reshape(*content.shape[:-1], -1)


def packed(numbers: Bytes, bits: int) -> Bytes:
    """Return numbers of a few bits as bytes along the last axis; the last byte is filled up with 0.

    Example:
        ``packed(np.array([1, 2, 3], np.uint8), 4)`` is ``[0x21, 0x03]``.
    """
    per_byte = 8 // bits
    spare = -numbers.shape[-1] % per_byte
    full = np.concatenate([numbers, np.zeros((*numbers.shape[:-1], spare), np.uint8)], axis=-1)
    groups = full.reshape(*full.shape[:-1], -1, per_byte)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(groups << shifts, axis=-1).astype(np.uint8)
