"""The registry of recovery methods: those that see one layer, and those that see the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onnxprune.plugins import Plugins, Registry, summary
from onnxprune.recovery.fitting import Layer, Proposal
from onnxprune.runtime.statistics import Moments

Propose = Callable[[Layer, Sequence[Moments]], Proposal]
"""From a layer and its moments, a part of the inputs each, to new numbers."""

Run = Callable[[Any, str], None]
"""From the state of a recovery and the method's name: changes the pruned model in place."""

Needs = Literal["nothing", "calibration"]
Judge = Literal["of the layer", "of the model", "none"]


@dataclass(frozen=True)
class Method:
    """A way to recover.

    Attributes:
        needs: Whether it needs calibration inputs.
        judge: The error that has to fall, on held-back inputs, for a change to stay.
        source: Where it comes from.
        propose: What it does with one layer; None where it sees the model.
        run: What it does with the model; None where it sees one layer at a time.
        needs_pytorch: Whether it trains through the bridge.
        holds_back: Whether it judges by inputs that no fit of the methods before it may have seen.
    """

    needs: Needs
    judge: Judge
    source: str
    propose: Propose | None = None
    run: Run | None = None
    needs_pytorch: bool = False
    holds_back: bool = False

    @property
    def in_words(self) -> str:
        """What it needs, in words."""
        return f"{self.needs}, PyTorch" if self.needs_pytorch else self.needs

    @property
    def judged_by_outputs(self) -> bool:
        """Whether the model's outputs decide, instead of the errors in the proposal."""
        return self.judge == "of the model"

    @property
    def formula(self) -> str:
        """The first sentence of the docstring, which is the formula."""
        function = self.propose or self.run
        return "" if function is None else summary(function)


def _of_function(name: str, function: Callable[..., Any]) -> Method:
    return Method("calibration", "of the layer", name, propose=function)


METHODS: Registry[Method] = Registry(
    "recovery method",
    Plugins(
        "onnxprune.recovery",
        [f"onnxprune.recovery.{module}" for module in ("methods", "reconstruct", "without_data", "align")],
    ),
    flag="--recover",
    of_function=_of_function,
)
"""All ways to recover. A function that the user names without a decorator is a `Propose`, judged by the layer."""


def method(name: str, *, judged_by_outputs: bool, source: str) -> Callable[[Propose], Propose]:
    """Register a method that sees one layer."""

    def register(function: Propose) -> Propose:
        judge: Judge = "of the model" if judged_by_outputs else "of the layer"
        METHODS.add(name, Method("calibration", judge, source, propose=function), function)
        return function

    return register


def model_method(
    name: str, *, needs: Needs, judge: Judge, source: str, needs_pytorch: bool = False, holds_back: bool = False
) -> Callable[[Run], Run]:
    """Register a method that sees the whole model."""

    def register(function: Run) -> Run:
        described = Method(needs, judge, source, run=function, needs_pytorch=needs_pytorch, holds_back=holds_back)
        METHODS.add(name, described, function)
        return function

    return register
