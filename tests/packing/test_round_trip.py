"""Any tensor at any density comes back bit for bit, through ONNX Runtime and through unpack."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.packing import pack, unpack
from onnxprune.packing.positions import FORMS, encode, entry_count, field_table, pack_fields, stored_bytes

from .builders import initializers

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """Random bits (so NaN payloads, infinities and subnormals too) in runs of zeros, some of them negative."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(1, 14), min_size=1, max_size=4)))
    size = int(np.prod(shape))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = random.integers(0, 256, size * dtype.itemsize, dtype=np.uint8).view(dtype)
    kept = random.random(size) < draw(st.sampled_from([0, 0.001, 0.01, 0.05, 0.1, 0.3, 0.6, 1]))
    array = np.where(kept, raw.view(f"u{dtype.itemsize}"), 0)
    if draw(st.booleans()) and dtype.kind not in "iu":
        array[random.random(size) < 0.02] = 1 << (8 * dtype.itemsize - 1)
    return array.astype(f"u{dtype.itemsize}").view(dtype).reshape(shape)


def _holder(array: np.ndarray) -> ir.Model:
    """A model that gives out an initializer."""
    tensor = ir.tensor(array, name="w")
    shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    weight = ir.Value(name="w", shape=shape, type=kind, const_value=tensor)
    node = ir.node("Identity", [weight], outputs=[ir.Value(name="y", shape=shape, type=kind)])
    graph = ir.Graph([], list(node.outputs), nodes=[node], initializers=[weight], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


@settings(max_examples=150, deadline=None)
@given(tensors(), st.sampled_from(["auto", "smallest", "gap8", "gap4", "bitmask"]))
def test_packed_tensors_come_back_bit_for_bit(array: np.ndarray, mode: Any) -> None:
    model = _holder(array)
    packed, report = pack(model, mode=mode)
    assert initializers(unpack(packed)) == initializers(model)
    assert report.packed_bytes <= report.dense_bytes
    if report.packed:
        session = ort.InferenceSession(ir.to_proto(packed).SerializeToString(), providers=["CPUExecutionProvider"])
        if array.dtype != ml_dtypes.bfloat16:  # ONNX Runtime's Python binding cannot hand bfloat16 out
            assert np.asarray(session.run(None, {})[0]).tobytes() == array.tobytes()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([f for f in FORMS.values() if f.layout in ("gaps", "escape", "mask")]),
    st.sets(st.integers(0, 70_000), max_size=60),
    st.integers(1, 2000),
)
def test_streams_are_as_long_as_they_are_said_to_be(form: Any, chosen: set[int], slack: int) -> None:
    kept = np.array(sorted(chosen), np.int64)
    size = int(kept.max(initial=0)) + slack
    stream = encode(form, kept, size)
    assert stream.count == entry_count(form, kept, size)
    assert stream.packed.nbytes + -(-stream.values * 32 // 8) == stored_bytes(form, kept, size, 32)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_fields_are_read_back_through_the_table(bits: int) -> None:
    fields = np.random.default_rng(bits).integers(0, 1 << bits, 101).astype(np.uint8)
    assert np.array_equal(field_table(bits)[pack_fields(fields, bits)].reshape(-1)[:101], fields)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70_000), st.sampled_from(["auto", "smallest", "gap8", "gap4"]))
def test_long_runs_of_zeros(run: int, mode: Any) -> None:
    """Steps around every field's limit: 3, 15, 255 and 65535."""
    array = np.zeros(2 * run + 40, np.float32)
    array[[0, run, 2 * run]] = 1.5, -2.5, -0.0
    model = _holder(array)
    packed, _ = pack(model, mode=mode)
    assert initializers(unpack(packed)) == initializers(model)
    session = ort.InferenceSession(ir.to_proto(packed).SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.asarray(session.run(None, {})[0]).tobytes() == array.tobytes()
