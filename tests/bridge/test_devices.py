"""Nothing that forward makes is left on another device: run on CUDA tensors that have shapes and no numbers.

FakeTensorMode works without the hardware and raises where devices mix. It knows the forward pass only, and no operator
that PyTorch implements in its CUDA library alone.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from onnxprune.bridge import OnnxModule, to_torch
from tests import zoo


@pytest.mark.parametrize("name", ["mobilenet_v3", "unet", "yolo", "bert", "gpt", "mixture_of_experts"])
def test_a_module_on_cuda_computes_on_cuda(name: str) -> None:
    module = to_torch(zoo.export(name, "legacy"))
    feeds = zoo.feeds(name, batch=2)
    with torch.no_grad(), FakeTensorMode():
        _move(module)
        inputs = (torch.empty(a.shape, dtype=torch.from_numpy(a).dtype, device="cuda") for a in feeds.values())
        outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [output.device.type for output in outputs] == ["cuda"] * len(outputs)


def _move(module: OnnxModule) -> None:
    """Replace parameters and buffers by CUDA tensors of their shapes: ``to`` would want the hardware."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    tensors[key] = torch.nn.Parameter(empty, False) if tensors is part._parameters else empty
