"""Small graphs written as text, with random weights, and removals by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools

from .twins import Array, normalised


def parse(text: str, opset: int = 20, **weights: Sequence[int] | Array) -> onnx.ModelProto:
    """Read a graph in ONNX's text form; ``weights`` are initializers, by shape (random) or content."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{text}')
    rng = np.random.default_rng(0)
    for name, content in weights.items():
        array = content if isinstance(content, np.ndarray) else rng.standard_normal(content).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def load(text: str, opset: int = 20, **weights: Sequence[int] | Array) -> ir.Model:
    """Read a graph as a normalised model."""
    return normalised(parse(text, opset, **weights))


def value(structure: Structure, name: str) -> ir.Value:
    """Find a value by name."""
    return next(v for v in structure.axes if v.name == name)


def without(structure: Structure, removals: Mapping[tuple[str, int], Sequence[int]]) -> Bools:
    """Return removal flags for all atoms at some indices of axes, given as {(value, axis): indices}."""
    removed = np.zeros(structure.terms.count, bool)
    for (name, axis), indices in removals.items():
        ids = structure.ids(value(structure, name), axis)
        assert ids is not None
        for i in indices:
            atoms = structure.terms.atoms(int(ids[i]))
            assert atoms, f"{name}[{axis}][{i}] is pinned"
            removed[list(atoms)] = True
    return removed


def constants(model: ir.Model) -> dict[str, Array]:
    """Return the content of all initializers."""
    return {str(v.name): v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None}
