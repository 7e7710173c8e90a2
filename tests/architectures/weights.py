"""Random weights that look trained: no zero bias, no unit scale, no trivial running statistics.

A freshly built PyTorch module hides mistakes: BatchNorm statistics of 0 and 1, LayerNorm scales of 1 and zero biases
are all neutral, so a tool that drops or misplaces them still gives the right output. `randomise` makes all count.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import nn


def randomise(module: nn.Module, name: str) -> nn.Module:
    """Fill float parameters and BatchNorm statistics from a generator seeded by `name`; put the module in eval mode.

    Matrices and kernels get the standard deviation sqrt(1.6 / fan_in) (between linear and ReLU gain, so that
    activations neither vanish nor explode), biases 0.2; scales and running variances lie in [0.5, 1.5].
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for path, parameter in module.named_parameters():
            _fill(path, parameter, generator)
        for path, buffer in module.named_buffers():
            if path.endswith("running_mean"):
                buffer.normal_(0.0, 0.3, generator=generator)
            elif path.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def _fill(path: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if "bias" in path.rsplit(".", 1)[-1]:
        parameter.normal_(0.0, 0.2, generator=generator)
    elif parameter.dim() >= 2:
        stacked = path.rsplit(".", 1)[-1].startswith("experts")  # [expert, in, out]: the fan is not the trailing volume
        fan_in = parameter.shape[1] if stacked else parameter[0].numel()
        parameter.normal_(0.0, math.sqrt(1.6 / fan_in), generator=generator)
    else:  # scales of normalisations and layer scales
        parameter.uniform_(0.5, 1.5, generator=generator)
