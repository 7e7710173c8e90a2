"""ONNX's own backend cases, and which of them are in the bridge's scope: tensor operators of ai.onnx.

Out of scope, by what a case's model contains: string tensors; sequences, optionals and maps; domains other than
ai.onnx; operators that decode images or text.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test import loader

TEXT_AND_IMAGES = frozenset({"ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"})


@dataclass(frozen=True)
class Case:
    """A model with inputs and the outputs it has to give."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    rtol: float
    atol: float

    @property
    def operator(self) -> str:
        """The first operator of the model: what the case is about."""
        return str(self.model.graph.node[0].op_type) if self.model.graph.node else ""


@functools.cache
def cases(kind: str) -> tuple[Case, ...]:
    """All cases of a kind ("node", "simple", "pytorch-converted", "pytorch-operator") that are in scope."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = loader.load_model_tests(kind=kind)
    return tuple(case for test in found for case in _read(test) if in_scope(case.model))


def _read(test: Any) -> list[Case]:
    if test.model is not None:
        sets = test.data_sets or []
        return [_case(test, test.model, inputs, outputs) for inputs, outputs in sets]
    if test.model_dir is None:
        return []
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    if not in_scope(model):
        return []
    return [
        _case(test, model, _arrays(data, "input"), _arrays(data, "output"))
        for data in sorted(folder.glob("test_data_set_*"))
    ]


def _case(test: Any, model: onnx.ModelProto, inputs: Any, outputs: Any) -> Case:
    return Case(test.name, model, tuple(map(_array, inputs)), tuple(map(_array, outputs)), test.rtol, test.atol)


def _array(value: Any) -> Any:
    """Types that numpy does not have are given as TensorProto."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _arrays(folder: Path, prefix: str) -> list[np.ndarray]:
    files = sorted(folder.glob(f"{prefix}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]


def in_scope(model: onnx.ModelProto) -> bool:
    """Whether a model is made of tensor operators of ai.onnx on numbers."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if any(value.type.WhichOneof("value") != "tensor_type" for value in values):
        return False
    if any(value.type.tensor_type.elem_type == onnx.TensorProto.STRING for value in values):
        return False
    nodes = list(_nodes(model.graph)) + [node for function in model.functions for node in function.node]
    own = {function.name for function in model.functions}
    if any(node.domain not in ("", "ai.onnx") and node.op_type not in own for node in nodes):
        return False
    if any(
        node.op_type in TEXT_AND_IMAGES or "Sequence" in node.op_type
        for node in nodes
        if node.op_type != "ReverseSequence"
    ):
        return False
    return not any(node.op_type.startswith("Optional") for node in nodes)


def _nodes(graph: onnx.GraphProto) -> Any:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
