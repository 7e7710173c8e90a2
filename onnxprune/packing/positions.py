"""Where the stored values of a sparse tensor are: constant, dense, bitmask, gaps, or gaps with escapes.

A `Form` turns the sorted indices of the stored elements into a small stream of integers. All forms decode with
fixed-shape operators (see `onnxprune.packing.decoder`):

- **mask**: one bit per element of the tensor.
- **gaps**: the step from one entry to the next, `bits` wide. A step that does not fit is split by filler entries,
  which carry the fill value and so cost one value each (Han et al. 2015, figure 2).
- **escape**: the zeros between two stored elements, `bits` wide; the largest number means "that many zeros, and no
  value here", so a long run costs entries but no values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Form:
    """One way to store positions.

    Attributes:
        name: What the report and the node name say.
        layout: "constant", "dense", "mask", "gaps" or "escape".
        bits: Width of one entry of the stream.
        overhead: Rough bytes of its nodes and small constants (without tables), to rank forms for small tensors.
        slow: Whether loading costs clearly more than `gap8` does (measured: 1.2 to 3 times).
    """

    name: str
    layout: str
    bits: int
    overhead: int
    slow: bool = False


FORMS = {
    form.name: form
    for form in (
        Form("constant", "constant", 0, 100),
        Form("dense", "dense", 0, 110),
        Form("bitmask", "mask", 1, 440, slow=True),
        Form("gap2x", "escape", 2, 850, slow=True),
        Form("gap4x", "escape", 4, 800, slow=True),
        Form("gap8", "gaps", 8, 330),
        Form("gap8x", "escape", 8, 620),
        Form("gap16", "gaps", 16, 330),
    )
}
# Which forms a mode may choose from. "constant" is exact and always the smallest where it applies.
MODES = {
    "auto": tuple(FORMS),
    "smallest": tuple(FORMS),
    "gap8": ("constant", "dense", "gap8", "gap8x"),
    "gap4": ("constant", "dense", "gap4x"),
    "bitmask": ("constant", "dense", "bitmask"),
}


@dataclass(frozen=True)
class Stream:
    """The positions of one tensor.

    Attributes:
        form: How to read `packed`.
        packed: The bytes (or uint16 numbers) that go into the file; empty for "dense" and "constant".
        count: Entries in the stream (fields, not bytes).
        values: How many values are stored, fillers and the leading fill value included.
        kept: [n] flat indices of the stored elements.
        slots: [n] which of the values is the i-th stored element.
    """

    form: Form
    packed: Array
    count: int
    values: int
    kept: Indices
    slots: Indices


def entry_count(form: Form, kept: Indices, size: int) -> int:
    """How many entries the stream has, without building it.

    Args:
        form: The form.
        kept: [n] ascending flat indices of the elements to store.
        size: Elements in the tensor.
    """
    if form.layout in ("mask", "dense"):
        return size
    return int(kept.size + _splits(form, kept).sum())


def stored_bytes(form: Form, kept: Indices, size: int, value_bits: int) -> int:
    """Bytes of positions and values together."""
    if form.layout == "constant":
        return 0
    count = entry_count(form, kept, size)
    values = count if form.layout in ("dense", "gaps") else kept.size + 1
    return -(-count * form.bits // 8) + -(-values * value_bits // 8)


def encode(form: Form, kept: Indices, size: int) -> Stream:
    """Build the stream of one tensor; arguments as for `entry_count`."""
    if form.layout == "constant":
        return Stream(form, np.empty(0, np.uint8), 0, 0, kept, kept)
    if form.layout == "dense":
        return Stream(form, np.empty(0, np.uint8), size, size, np.arange(size), np.arange(size))
    if form.layout == "mask":
        fields = np.zeros(size, np.uint8)
        fields[kept] = 1
        return Stream(form, pack_fields(fields, 1), size, kept.size + 1, kept, np.arange(1, kept.size + 1))
    splits = _splits(form, kept)
    ends = np.cumsum(splits + 1) - 1
    limit = (1 << form.bits) - 1
    fields = np.full(kept.size + int(splits.sum()), limit, np.uint16)
    fields[ends] = _steps(form, kept) - splits * limit
    packed = pack_fields(fields, form.bits)
    if form.layout == "gaps":
        return Stream(form, packed, fields.size, fields.size, kept, ends)
    return Stream(form, packed, fields.size, kept.size + 1, kept, np.arange(1, kept.size + 1))


def pack_fields(fields: Array, bits: int) -> Array:
    """[n] numbers below 2**bits -> [ceil(n * bits / 8)] bytes, the first field lowest; 16 bits: [n] uint16."""
    if bits >= 8:
        return fields.astype(np.uint8 if bits == 8 else np.uint16)
    rows = -(-fields.size // (8 // bits))
    padded = np.zeros(rows * (8 // bits), np.uint8)
    padded[: fields.size] = fields
    packed: Array = np.bitwise_or.reduce(padded.reshape(rows, 8 // bits) << _shifts(bits), axis=1)
    return packed


def field_table(bits: int) -> Array:
    """[256, 8 / bits] the fields of every byte."""
    table: Array = (np.arange(256, dtype=np.uint8)[:, None] >> _shifts(bits)) & np.uint8((1 << bits) - 1)
    return table


def _shifts(bits: int) -> Array:
    return np.arange(0, 8, bits, dtype=np.uint8)


def _steps(form: Form, kept: Indices) -> Indices:
    """gaps: index minus the index before (the first: the index itself). escape: zeros in between."""
    return np.diff(kept, prepend=0) if form.layout == "gaps" else np.diff(kept, prepend=-1) - 1


def _splits(form: Form, kept: Indices) -> Indices:
    """[n] How many fillers or escapes come before each stored element."""
    limit = (1 << form.bits) - 1
    steps = _steps(form, kept)
    return np.maximum(steps - 1, 0) // limit if form.layout == "gaps" else steps // limit
