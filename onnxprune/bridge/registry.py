"""The one table of operator functions: (domain, operator) -> functions, each valid from an opset version on.

A function takes the node's inputs in order (None where one is left out) and its attributes by keyword, and returns a
tensor, or a tuple if the operator can have several outputs. It is written once and serves the generated code, the
interpreter and `torch.compile`. The version picked is the nearest one at or below the model's opset.

Keywords that the builder supplies by itself, when a function has them in its signature:
    training: the module's mode.   updates_statistics: whether BatchNormalization may update its running statistics.
    n_outputs: how many outputs the node has.   device: where to create tensors.
    input_types: the ONNX data types of the inputs as far as known (ir.DataType or None).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx_ir as ir

from onnxprune.graph.operators import key
from onnxprune.plugins import Plugins, Registry

INJECTED = frozenset({"training", "updates_statistics", "n_outputs", "device", "input_types", "opset"})
MICROSOFT = "com.microsoft"

EVERY_INPUT = range(1024)

Function = TypeVar("Function", bound=Callable[..., Any])
Quantizes = Callable[[dict[str, Any], "list[ir.DataType | None]"], "ir.DataType | None"]


@dataclass(frozen=True)
class Operator:
    """How one operator runs from one opset version on.

    Attributes:
        function: Runs the operator on tensors.
        host: Inputs given as Python numbers or lists (shapes, axes, sizes); a runtime tensor is read back.
        scalar: Inputs given as a Python number when they are constants, as tensors otherwise.
        fixed: Inputs that are no weights: bounds, statistics, quantisation parameters. Their initializers do not train.
        statistics: Inputs that the operator itself updates in training (they are buffers whatever else uses them).
        quantized: Inputs that take integers carried in a float tensor, so that gradients pass.
        carries: Inputs that only move to the output: integers carried in float there come out carried in float.
        quantizes: Gives the ONNX type of an output whose integers are carried in a float tensor, from the attributes
            and the input types.
        weights: Inputs that may be quantised weights -> where their scale and zero point are. An integer initializer
            there trains through a float parameter that is quantised in the forward pass.
        multiple: The function returns a tuple.
        differentiable: Gradients pass from outputs to inputs.
        elementwise: A one-element initializer used here is taken for a constant of the formula, not for a weight.
    """

    name: str
    domain: str
    since: int
    function: Callable[..., Any]
    host: frozenset[int]
    scalar: frozenset[int]
    fixed: frozenset[int]
    statistics: frozenset[int]
    quantized: frozenset[int]
    carries: frozenset[int]
    quantizes: Quantizes | None
    weights: dict[int, tuple[int, int]]
    multiple: bool
    differentiable: bool
    elementwise: bool
    parameters: tuple[str, ...]
    variadic_keywords: bool

    @property
    def injected(self) -> frozenset[str]:
        """The keywords the builder has to supply."""
        return INJECTED.intersection(self.parameters)


@dataclass(frozen=True)
class HostOperator:
    """How an operator runs where shapes are computed: on Python numbers and (nested) lists of them.

    Attributes:
        function: Takes the inputs in order and the attributes by keyword.
        dtype: The ONNX type of the result: the name of a type, the name of an attribute that holds it, or the
            position of the input that has the same type.
        of_tensors: The input is a tensor (Shape, Size); otherwise all inputs have to be Python values.
    """

    function: Callable[..., Any]
    dtype: str | int
    of_tensors: bool


Bind = Callable[[Any, ir.Node], Any]
"""From the builder of a graph and a node that holds graphs to the call that runs it; see `control_flow`."""

PLUGINS = Plugins("onnxprune.bridge", ["onnxprune.bridge.ops", "onnxprune.bridge.control_flow"])
OPERATORS: Registry[list[Operator]] = Registry("operator of the bridge", PLUGINS)
HOST_OPERATORS: Registry[HostOperator] = Registry("operator on numbers", PLUGINS)
GRAPH_OPERATORS: Registry[Bind] = Registry("operator with graphs", PLUGINS)


def op(
    *names: str,
    domain: str = "",
    since: int = 1,
    host: Iterable[int] = (),
    scalar: Iterable[int] = (),
    fixed: Iterable[int] = (),
    statistics: Iterable[int] = (),
    quantized: Iterable[int] = (),
    carries: Iterable[int] = (),
    quantizes: Quantizes | None = None,
    weights: dict[int, tuple[int, int]] | None = None,
    multiple: bool = False,
    differentiable: bool = True,
    elementwise: bool = False,
) -> Callable[[Function], Function]:
    """Register a function for operators `names` of `domain` from opset `since` on. See `Operator` for the flags."""

    def register(function: Function) -> Function:
        signature = inspect.signature(function).parameters
        for name in names:
            entry = Operator(
                name=name,
                domain=domain,
                since=since,
                function=function,
                host=frozenset(host),
                scalar=frozenset(scalar),
                fixed=frozenset(fixed) | frozenset(host) | frozenset(scalar),
                statistics=frozenset(statistics),
                quantized=frozenset(quantized),
                carries=frozenset(carries),
                quantizes=quantizes,
                weights=weights or {},
                multiple=multiple,
                differentiable=differentiable,
                elementwise=elementwise,
                parameters=tuple(signature),
                variadic_keywords=any(p.kind is p.VAR_KEYWORD for p in signature.values()),
            )
            operator = key(domain, name)
            versions = [known for known in OPERATORS.entered(operator) or () if known.since != since]
            versions = sorted([*versions, entry], key=lambda known: known.since)
            OPERATORS.add(operator, versions, function, replace=True)
        return function

    return register


def host_op(*names: str, dtype: str | int = 0, of_tensors: bool = False) -> Callable[[Function], Function]:
    """Register how ai.onnx operators `names` run on plain Python numbers and lists. See `HostOperator`."""

    def register(function: Function) -> Function:
        for name in names:
            HOST_OPERATORS.add(name, HostOperator(function, dtype, of_tensors), function)
        return function

    return register


def graph_op(*names: str) -> Callable[[Bind], Bind]:
    """Register how the call of ai.onnx operators `names`, which hold graphs, is generated. See `Bind`."""
    return GRAPH_OPERATORS.register(*names)


def find_operator(domain: str, name: str, opset: int) -> Operator | None:
    """The function for this operator at this opset, or None. The nearest version at or below `opset` wins."""
    newest = None
    for candidate in OPERATORS.get(key(domain, name), ()):
        if newest is None or candidate.since <= opset:
            newest = candidate
    return newest


def find_host_operator(domain: str, name: str) -> HostOperator | None:
    """How this operator runs on Python numbers, or None if it only runs on tensors."""
    return HOST_OPERATORS.get(name) if domain in ("", "ai.onnx") else None


def find_graph_operator(domain: str, name: str) -> Bind | None:
    """How the call of an operator that holds graphs is generated, or None where it is not known."""
    return GRAPH_OPERATORS.get(name) if domain in ("", "ai.onnx") else None


def supported_operators() -> dict[str, list[int]]:
    """Operator name (with its domain, if not ai.onnx) -> opset versions from which a function of its own holds."""
    return {name: [entry.since for entry in OPERATORS[name]] for name in sorted(OPERATORS)}
