"""Walking the wire format gives what protobuf's own parser gives, and refuses what it refuses."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from model_io_models import damaged_model, mlp

from onnxprune.model_io import wire


@given(st.integers(0, 2**64 - 1))
def test_numbers_come_back(value: int) -> None:
    written = wire.write_varint(value)
    assert wire.read_varint(written + b"rest", 0, len(written) + 4) == (value, len(written))


def test_a_model_parsed_in_parts_is_the_model(light_models: list[Path]) -> None:
    for content in [mlp().SerializeToString(), *(path.read_bytes() for path in light_models[:3])]:
        assert wire.parse_model(content) == onnx.ModelProto.FromString(content)


def test_graphs_given_in_pieces_are_merged() -> None:
    """Protobuf joins repeated occurrences of a message field."""
    content = mlp().SerializeToString() + mlp().SerializeToString()
    assert wire.parse_model(content) == onnx.ModelProto.FromString(content)


@given(st.data())
def test_damaged_bytes_are_refused_by_both_or_by_neither(data: st.DataObject) -> None:
    damaged = damaged_model(data)
    try:
        expected = onnx.ModelProto.FromString(damaged)
    except DecodeError:
        with pytest.raises((DecodeError, wire.WireError)):
            wire.parse_model(damaged)
    else:
        assert wire.parse_model(damaged).SerializeToString() == expected.SerializeToString()
