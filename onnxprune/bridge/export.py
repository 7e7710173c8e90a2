"""`reexport`: a module that was changed by hand, as a new ONNX file, through PyTorch's own exporter.

It keeps the names of inputs and outputs, not those of weights and nodes; `write_back` keeps everything and is what
the rest of onnxprune uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from onnxprune.bridge.module import OnnxModule
from onnxprune.errors import ModelError


def reexport(
    module: torch.nn.Module,
    path: str | Path,
    example_inputs: Sequence[torch.Tensor],
    dynamic_batch: bool = True,
    opset: int = 18,
) -> None:
    """Export `module` to `path` with `torch.onnx.export`.

    Args:
        module: Any module; the names of inputs and outputs are kept for those made by `to_torch`.
        path: The file to write.
        example_inputs: One tensor per argument; they fix all sizes but the batch.
        dynamic_batch: Leave the first axis of every input free.
        opset: The ai.onnx opset to export to.

    Raises:
        ModelError: PyTorch's exporter failed; the message has its reason.
    """
    names = module.meta if isinstance(module, OnnxModule) else {}
    axes = {name: {0: "batch"} for name in names.get("input_names", [])} if dynamic_batch else None
    was_training = module.training
    try:
        torch.onnx.export(
            module.eval(),
            tuple(example_inputs),
            str(path),
            input_names=names.get("input_names") or None,
            output_names=names.get("output_names") or None,
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    except Exception as error:
        raise ModelError(f"torch.onnx.export could not export the module: {error}") from error
    finally:
        module.train(was_training)
