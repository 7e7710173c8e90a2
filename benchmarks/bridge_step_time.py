"""What a training step costs through the bridge: ResNet-18, LeNet-5 and inverted residuals against native PyTorch.

The same network is run as its own nn.Module, as `to_torch` of its ONNX export, and as that with its channels last, as
training uses it. The three take turns step by step in one process: forward, cross-entropy, backward, SGD with momentum.
The figures are medians of the ratios of neighbouring steps to native ones. The inverted residuals are those of
MobileNetV2 and cut off by `torch.clamp`, whose gradient is four kernels. `torch.compile` of the bridge's module is
run on all, and its output compared.

    python benchmarks/bridge_step_time.py [--steps 40] [--device cpu] [--threads 1]

Writes benchmarks/results/bridge_step_time.json.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from onnxprune.bridge import channels_last, to_torch

RESULT = Path(__file__).parent / "results" / "bridge_step_time.json"
BATCH = 64


class LeNet5(nn.Module):
    """The Caffe variant: 20 and 50 filters, 500 hidden neurons, 431 K parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) to (N, 10)."""
        x = nn.functional.max_pool2d(self.conv1(x), 2)
        x = nn.functional.max_pool2d(self.conv2(x), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """He et al. 2016, for 64x64 images here, so that a step takes a second on one core."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        blocks = [block for i, o, s in widths for block in (Block(i, o, s), Block(o, o, 1))]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(512, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 1000)."""
        return self.head(nn.functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class InvertedResidual(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions, cut off between 0 and 6 (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 6 * inputs
        self.expand, self.depth = nn.Conv2d(inputs, wide, 1), nn.Conv2d(wide, wide, 3, stride, 1, groups=wide)
        self.project, self.adds = nn.Conv2d(wide, outputs, 1), stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W)."""
        inner = torch.clamp(self.depth(torch.clamp(self.expand(x), 0, 6)), 0, 6)
        return x + self.project(inner) if self.adds else self.project(inner)


class InvertedResiduals(nn.Module):
    """A stack with the widths of MobileNetV2, one block for two."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(32, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 1)]
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.blocks, self.head = nn.Sequential(*(InvertedResidual(*w) for w in widths)), nn.Linear(96, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 1000)."""
        return self.head(nn.functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


def export(network: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """The network as ONNX with BatchNormalization left as it is."""
    buffer = io.BytesIO()
    torch.onnx.export(
        network, (example[:2],), buffer, input_names=["input"], output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17, dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


class Stepper:
    """One network with its optimiser: call it for one training step, which gives the seconds it took."""

    def __init__(self, network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.network, self.x, self.y = network.train(), x, y
        self.optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> float:
        clock = time.perf_counter if self.x.is_cuda else time.process_time  # CPU time: other processes do not count
        start = clock()
        self.optimiser.zero_grad()
        nn.functional.cross_entropy(self.network(self.x), self.y).backward()
        self.optimiser.step()
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return clock() - start


def measure(network: nn.Module, x: torch.Tensor, steps: int) -> dict[str, Any]:
    """Seconds a step, and the medians of the ratios of neighbouring steps."""
    y = torch.randint(10, (len(x),), device=x.device)
    graph = export(network.eval(), x.cpu())
    module, last = to_torch(graph).to(x.device), channels_last(to_torch(graph)).to(x.device)
    network = network.to(x.device)
    with torch.no_grad():
        difference = float((network.eval()(x) - module.eval()(x)).abs().max())
        compiled = torch.compile(module, fullgraph=True)
        compiled_difference = float((compiled(x) - module(x)).abs().max())
    steppers = [Stepper(each, x, y) for each in (network, module, last)]
    for stepper in steppers * 2:
        stepper()
    gc.disable()
    times: list[list[float]] = []
    for step in range(steps):  # the order changes, so that none always comes first
        order = [(step + i) % 3 for i in range(3)]
        taken = {i: steppers[i]() for i in order}
        times.append([taken[i] for i in range(3)])
    gc.enable()
    ratios = sorted(bridged / native for native, bridged, _ in times)
    return {
        "native_s": statistics.median(native for native, _, _ in times),
        "bridge_s": statistics.median(bridged for _, bridged, _ in times),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "channels_last_ratio": statistics.median(laid / native for native, _, laid in times),
        "steps": steps,
        "largest_output_difference": difference,
        "compile": {"full_graph": True, "largest_output_difference": compiled_difference},
    }


def main() -> None:
    """Measure the networks and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    result = {
        "batch": BATCH,
        "limit": 1.05,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "clock": "wall" if device.type == "cuda" else "CPU time of the process",
        "threads": arguments.threads,
        "torch": torch.__version__,
        "lenet5": measure(LeNet5(), torch.randn(BATCH, 1, 28, 28, device=device), arguments.steps * 10),
        "resnet18": measure(ResNet18(), torch.randn(BATCH, 3, 64, 64, device=device), arguments.steps),
        "inverted residuals": measure(
            InvertedResiduals(), torch.randn(BATCH, 3, 96, 96, device=device), arguments.steps
        ),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
