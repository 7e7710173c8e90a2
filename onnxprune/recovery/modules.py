"""Parts of a model as PyTorch modules that are trained, and how their numbers get back into the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import Parameter

from onnxprune.bridge import OnnxModule, channels_last, to_torch, write_back
from onnxprune.bridge.dtypes import from_numpy
from onnxprune.bridge.parameters import Role
from onnxprune.recovery.places import Place
from onnxprune.training.widen import widen

Array = npt.NDArray[Any]

_EARLIER = 0.3  # what all cuts but the last weigh together, beside 1 for the last


def module_of(part: ir.Model) -> tuple[OnnxModule, list[Parameter]]:
    """A model as a module in float32, and what is trained of it: not numbers that are stored in few bits."""
    view = part.clone()
    widen(view)
    module = channels_last(to_torch(view))
    kinds = {name: target.role for name, target in module.targets.items()}
    trained = []
    for name, parameter in module.named_parameters():
        if kinds.get(name) is Role.PARAMETER and parameter.requires_grad:
            trained.append(parameter)
        else:
            parameter.requires_grad_(False)
    return module, trained


def tensors(part: ir.Model, values: Mapping[str, Array]) -> list[Tensor]:
    """The inputs of a module from arrays by name."""
    made = [from_numpy(np.array(values[str(v.name)])) for v in part.graph.inputs]
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in made]


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Outputs as a tuple, where a module has one only too."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def take(module: OnnxModule, part: ir.Model, model: ir.Model) -> None:
    """Put a module's numbers into the constants of a model that the part was made from."""
    trained = write_back(module, part).graph.initializers
    for name, value in model.graph.initializers.items():
        if name in trained and trained[name].const_value is not part.graph.initializers[name].const_value:
            value.const_value = trained[name].const_value


def squares(
    places: Sequence[Place],
    mine: Sequence[Tensor],
    theirs: Mapping[str, Array],
    counted: npt.NDArray[np.bool_] | None,
) -> Tensor:
    """Weighted squared differences at some places, each over the variance of the dense values there.

    Args:
        places: In the order of the network; the last weighs 1, all others together 0.3.
        mine: What is left there of the pruned network's values.
        theirs: The dense network's, whole, by name.
        counted: Which tokens count, shape [samples, tokens]; None for all.
    """
    earlier = _EARLIER / max(1, len(places) - 1)
    total = torch.zeros(())
    for index, (place, ours) in enumerate(zip(places, mine, strict=True)):
        gap = (ours.float() - from_numpy(place.left(theirs[place.name])).float()).square() / place.variance
        if counted is not None and gap.shape[:2] == counted.shape:
            gap = gap[torch.from_numpy(counted)]
        total = total + gap.mean() * (1.0 if index == len(places) - 1 else earlier)
    return total
