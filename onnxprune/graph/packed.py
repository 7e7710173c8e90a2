"""Weights in a few bits: [outputs, blocks, bytes of a block], with a scale and perhaps a zero point for each block.

A number is (q - zero point) * scale. Without zero points these are in the middle of what the bits can hold, 8 of 4
bits. The first number of a byte is in its lowest bits. (ONNX Runtime's ContribOperators.md, MatMulNBits.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Packed:
    """How a packed weight is read.

    Attributes:
        scales: One for each block, [outputs, blocks] or flat.
        zero_points: Packed in the same bits, or None.
        bits: Of one number.
        block: How many numbers share a scale.
        inputs: How many numbers of an output count; the last block may hold more.
        outputs, blocks: The extents of the weight.
    """

    scales: ir.Value
    zero_points: ir.Value | None
    bits: int
    block: int
    inputs: int
    outputs: int
    blocks: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of the weight, by output and block."""
        return self.outputs, self.blocks, self.block

    def numbers(self, content: Array) -> npt.NDArray[np.float32]:
        """Return the numbers that the bytes stand for, of `shape`; 0 behind the last that counts."""
        scales = _content(self.scales).astype(np.float32).reshape(self.outputs, self.blocks, 1)
        q = unpacked(content.astype(np.uint8), self.bits).astype(np.float32)
        numbers = ((q - self.points()[..., None]) * scales).reshape(self.outputs, -1)
        numbers[:, self.inputs :] = 0
        return numbers.reshape(self.shape).astype(np.float32, copy=False)

    def points(self) -> Bytes:
        """Return the zero point of each block, [outputs, blocks]."""
        if self.zero_points is None:
            return np.full((self.outputs, self.blocks), 1 << (self.bits - 1), np.uint8)
        rows = _content(self.zero_points).astype(np.uint8).reshape(self.outputs, -1)
        return unpacked(rows, self.bits)[:, : self.blocks]

    def zeros(self) -> Bytes:
        """Return the byte that holds nothing but zero points, for each block: [outputs, blocks, 1]."""
        per_byte = 8 // self.bits
        return packed(np.repeat(self.points()[..., None], per_byte, axis=-1), self.bits)


def layout_of(node: ir.Node) -> Packed | str:
    """Return how a node reads its packed weight; where it reads it in another way, what that is."""
    w, scales, points, order = (node.inputs[i] if i < len(node.inputs) else None for i in (1, 2, 3, 4))
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0)
    if order is not None:
        return "its inputs are in an order of their own"
    held = [value for value in (w, scales, points) if value is not None]
    if w is None or scales is None or not all(v.is_initializer() and v.const_value is not None for v in held):
        return "its weights are not constant"
    shape = w.const_value.shape.numpy() if w.const_value is not None else ()
    if bits not in (2, 4, 8) or not block or len(shape) != 3 or shape[2] * 8 != block * bits:
        return "its weights are packed in blocks of bits of another layout"
    if points is not None and points.dtype != ir.DataType.UINT8:
        return "its zero points are no integers"
    return Packed(scales, points, bits, block, node.attributes.get_int("K", 0), int(shape[0]), int(shape[1]))


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
