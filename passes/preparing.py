"""The registry of passes that other packages run on every model before it is analysed.

Such a pass may write an operator of its own as ordinary ones, or undo what an exporter left in the way. `Normalise`
runs it, so that all that reads a model sees the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import onnx_ir as ir

from onnxprune.errors import OnnxPruneError
from onnxprune.plugins import Plugins, Registry

PASSES: Registry[type[ir.passes.InPlacePass]] = Registry("pass", Plugins("onnxprune.passes"))

Pass = TypeVar("Pass", bound=type[ir.passes.InPlacePass])


def preparing(name: str) -> Callable[[Pass], Pass]:
    """Register a pass under a name.

    Raises:
        OnnxPruneError: It does not promise to leave the function of the model exactly as it is.
    """

    def register(cls: Pass) -> Pass:
        if getattr(cls, "preserves", "") != "exactly":
            raise OnnxPruneError(
                f"the pass '{name}' cannot prepare models: its `preserves` is not 'exactly', and verification compares "
                "with the model as it is prepared"
            )
        PASSES.add(name, cls, cls)
        return cls

    return register
