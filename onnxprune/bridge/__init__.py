"""ONNX graphs as PyTorch modules, and trained numbers back into the same graph.

`to_torch` gives a `torch.nn.Module` whose parameters are the graph's float initializers and whose forward is
generated, readable, straight-line Python (`module.code`). `write_back` puts the module's numbers into a copy of the
graph: same nodes, same names, new numbers. Nothing here is imported by `import onnxprune`: PyTorch is optional.
"""

from __future__ import annotations

import importlib.util

from onnxprune.errors import OnnxPruneError

if importlib.util.find_spec("torch") is None:
    raise OnnxPruneError("Retraining needs PyTorch, which is not installed: pip install 'onnxprune[retrain]'.")

from onnxprune.bridge.export import reexport
from onnxprune.bridge.interpreter import Mismatch, compare_with_runtime, intermediate_values
from onnxprune.bridge.layout import channels_last
from onnxprune.bridge.module import OnnxModule, to_torch
from onnxprune.bridge.registry import op, supported_operators
from onnxprune.bridge.writing import write_back

__all__ = [
    "Mismatch",
    "OnnxModule",
    "channels_last",
    "compare_with_runtime",
    "intermediate_values",
    "op",
    "reexport",
    "supported_operators",
    "to_torch",
    "write_back",
]
