"""A layer as the rules of an engine see it, and what a rule and an engine are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.layers import MatrixAxes, group_count, matrix_axes, slot_of
from onnxprune.graph.operators import operator_of


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the node that reads it.

    Attributes:
        name: The weight's.
        value: Where it stands in the graph.
        node: The Conv, Gemm, MatMul, ... that it is the weight of.
        shape: Of its numbers.
        integers: Whether they are stored as integers.
        numbers: Reads them; integers as their distance from the zero point.
    """

    name: str
    value: ir.Value
    node: ir.Node
    shape: tuple[int, ...]
    integers: bool
    numbers: Callable[[], npt.NDArray[np.float32]]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def axes(self) -> MatrixAxes | None:
        """Which axis is summed over, and which counts outputs."""
        return matrix_axes(self.value, self.node, self.shape)

    @property
    def is_convolution(self) -> bool:
        """Whether it is ONNX's own convolution, not a transposed one or one of a runtime."""
        return self.node.op_type == "Conv" and self.node.domain == ""

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product of ONNX with the weight on the right."""
        slot = slot_of(self.value, self.node, self.shape)
        plain = self.node.domain == "" and operator_of(self.node).kind == "fc" and not operator_of(self.node).equation
        return plain and slot is not None and slot.input > slot.data

    @property
    def groups(self) -> int:
        """Into how many groups its channels are divided."""
        return group_count(self.node)


@dataclass(frozen=True)
class Rule:
    """What an engine asks of a layer.

    Attributes:
        about: The rule, in a sentence.
        source: Where the engine's makers say so.
        misfit: Says why a layer does not keep it, empty where it does.
    """

    about: str
    source: str
    misfit: Callable[[Layer], str]


@dataclass(frozen=True)
class Engine:
    """A runtime with kernels for zeros, and what these need.

    Attributes:
        name: As ``--engine`` takes it.
        called: As its makers write it.
        structure: What goes, where the user left it open.
        patterns: The only shapes of zeros that its kernels read; empty where zeros may lie anywhere.
        quantize: The form of the weights, where the user left it open.
        refused: Forms that it cannot use, with the reason.
        rules: What it asks of a layer.
        zeros_source: Where its makers say which zeros count.
        unused: Says, of layers that keep the rules, whose zeros do not count, with the reason.
        advice: What to set when the model is run; ``{rate}`` stands for the least share of zeros of a layer.
        settings: Other fields of a recipe, where the user left them open.
        beyond: The sparsity has to be more than this share.
        step: Step of the counts that are kept, where whole units go as well.
        remarks: What a user should know of a form of the weights.
        outputs_first: Whether quantised weights of matrix products have to be stored outputs first.
        signed: Whether int8 needs signed activations with the zero point 0, and biases in float.
        survey: Says why nodes of a graph do not suit it, where that takes more than one layer to see.
    """

    name: str
    called: str
    structure: str
    quantize: str
    refused: Mapping[str, str]
    rules: tuple[Rule, ...]
    zeros_source: str
    unused: Callable[[Sequence[Layer]], dict[str, str]]
    advice: str
    patterns: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    beyond: float = 0.0
    step: int | None = None
    remarks: Mapping[str, str] = field(default_factory=dict)
    signed: bool = False
    outputs_first: bool = False
    survey: Callable[[ir.Graph], Mapping[ir.Node, str]] | None = None


def misfits(engine: Engine, layers: Sequence[Layer]) -> dict[str, str]:
    """Return why an engine has no use for zeros in some of the layers of a model, by name."""
    graphs = {id(layer.node.graph): layer.node.graph for layer in layers}
    surveyed: dict[ir.Node, str] = {}
    if engine.survey is not None:
        for graph in graphs.values():
            if isinstance(graph, ir.Graph):
                surveyed.update(engine.survey(graph))
    reasons = {}
    for layer in layers:
        broken = (why for rule in engine.rules if (why := rule.misfit(layer)))
        why = next(broken, "") or surveyed.get(layer.node, "")
        if why:
            reasons[layer.name] = why
    return reasons


def without_zeros(layers: Sequence[Layer]) -> dict[str, str]:
    """Say which layers have no zeros at all."""
    return {layer.name: "none of its weights is zero" for layer in layers if np.all(layer.numbers() != 0)}
