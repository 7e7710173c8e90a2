"""The architectures that the engine is tested on: small, seeded, built from our own PyTorch code, exported to ONNX.

    zoo.ARCHITECTURES["resnet_basic"]              what it is and how to feed it
    zoo.export("resnet_basic", "dynamo", 18)       -> onnx.ModelProto, a fresh copy at every call
    zoo.feeds("resnet_basic", batch=3)             -> {input name: numpy array}
    zoo.cases()                                    -> [(name, exporter, opset), ...] to parametrise tests with

PyTorch is imported only when something is built: `import zoo` works without it, and `zoo.HAS_TORCH` says so.
The networks themselves are in tests/architectures/, one module a family.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    import torch

HAS_TORCH = importlib.util.find_spec("torch") is not None
EXPORTERS = ("legacy", "dynamo")
_EXPORT_BATCH = 2  # not 1: torch.export specialises on sizes 0 and 1


@dataclass(frozen=True)
class Architecture:
    """One network: `module` and `builder` name the function in tests/architectures that makes it."""

    name: str
    module: str
    builder: str
    shapes: Mapping[str, tuple[int, ...]]  # per input, without the batch axis
    vocabulary: Mapping[str, int] = field(default_factory=dict)  # integer inputs and the number of their values
    sequence_axis: int | None = None  # dynamic besides the batch axis

    def build(self) -> torch.nn.Module:
        """The network in eval mode with seeded random weights, the same at every call."""
        import torch

        package = f"{__package__}.architectures" if __package__ else "architectures"
        with torch.random.fork_rng():
            module = getattr(importlib.import_module(f"{package}.{self.module}"), self.builder)()
        randomise: Callable[..., torch.nn.Module] = importlib.import_module(f"{package}.weights").randomise
        return randomise(module, self.name)

    def inputs(self, batch: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Seeded inputs in the order of `forward`."""
        import torch

        return tuple(torch.from_numpy(array) for array in feeds(self.name, batch, seed).values())

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Per input, the names of its dynamic axes."""
        axes = {0: "batch"} if self.sequence_axis is None else {0: "batch", self.sequence_axis: "sequence"}
        return {name: dict(axes) for name in self.shapes}


def _image(size: int) -> dict[str, tuple[int, ...]]:
    return {"image": (3, size, size)}


_TOKENS: tuple[dict[str, tuple[int, ...]], dict[str, int], int] = ({"tokens": (7,)}, {"tokens": 97}, 1)
_BERT_INPUTS = {"input_ids": (7,), "token_type_ids": (7,), "attention_mask": (7,)}
_BERT_VOCABULARY = {"input_ids": 97, "token_type_ids": 2, "attention_mask": 2}

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in [
        Architecture("resnet_basic", "convolutional", "resnet_basic", _image(32)),
        Architecture("resnet_bottleneck", "convolutional", "resnet_bottleneck", _image(32)),
        Architecture("resnext", "convolutional", "resnext", _image(32)),
        Architecture("mobilenet_v2", "convolutional", "mobilenet_v2", _image(32)),
        Architecture("mobilenet_v3", "convolutional", "MobileNetV3", _image(32)),
        Architecture("efficientnet", "convolutional", "efficientnet", _image(32)),
        Architecture("densenet", "convolutional", "densenet", _image(32)),
        Architecture("inception", "convolutional", "inception", _image(32)),
        Architecture("shufflenet_v2", "convolutional", "shufflenet_v2", _image(32)),
        Architecture("convnext", "convolutional", "ConvNeXt", _image(32)),
        Architecture("vgg", "convolutional", "vgg", _image(32)),
        Architecture("unet", "dense_prediction", "UNet", _image(16)),
        Architecture("yolo", "dense_prediction", "Detector", _image(64)),
        Architecture("lstm", "recurrent", "Lstm", {"x": (6, 12)}, sequence_axis=1),
        Architecture("gru_bidirectional", "recurrent", "BidirectionalGru", {"tokens": (6,)}, {"tokens": 53}, 1),
        Architecture("rnn", "recurrent", "ElmanRnn", {"x": (6, 12)}, sequence_axis=1),
        Architecture("vit", "transformers", "ViT", _image(16)),
        Architecture("vit_mha", "transformers", "vit_mha", _image(16)),
        Architecture("bert", "transformers", "Bert", _BERT_INPUTS, _BERT_VOCABULARY, sequence_axis=1),
        Architecture("swin", "swin", "Swin", _image(32)),
        Architecture("gpt", "language", "Gpt", *_TOKENS),
        Architecture("llama", "language", "llama", *_TOKENS),
        Architecture("gqa_broadcast", "language", "gqa_broadcast", *_TOKENS),
        Architecture("gqa_sdpa", "language", "gqa_sdpa", *_TOKENS),
        Architecture("mixture_of_experts", "language", "mixture_of_experts", *_TOKENS),
        Architecture("control_flow", "control_flow", "ControlFlow", {"image": (3, 16, 16), "steps": (1,)}, {"steps": 4}),
    ]
}


def feeds(name: str, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs for ONNX Runtime: float32 from a normal distribution, int64 below the vocabulary's size."""
    architecture = ARCHITECTURES[name]
    generator = np.random.default_rng([seed, batch])
    arrays: dict[str, np.ndarray] = {}
    for key, shape in architecture.shapes.items():
        if key in architecture.vocabulary:
            arrays[key] = generator.integers(0, architecture.vocabulary[key], (batch, *shape))
        else:
            arrays[key] = generator.standard_normal((batch, *shape), np.float32)
    return arrays


def cases(full: bool = False) -> list[tuple[str, str, int]]:
    """(name, exporter, opset) triples: each architecture by each exporter once, or at every opset if `full`."""
    opsets = {"legacy": range(13, 21), "dynamo": range(18, 24)} if full else {"legacy": [17], "dynamo": [18]}
    return [(name, exporter, opset) for name in ARCHITECTURES for exporter in EXPORTERS for opset in opsets[exporter]]


def export(name: str, exporter: str = "dynamo", opset: int | None = None, *, cache: bool = True) -> onnx.ModelProto:
    """The architecture as an ONNX model with embedded weights; exports are kept in memory per process unless not `cache`.

    Raises KeyError for an unknown name, ValueError for an unknown exporter.
    """
    if exporter not in EXPORTERS:
        raise ValueError(f"unknown exporter {exporter!r}; there are {', '.join(EXPORTERS)}")
    opset = opset or (17 if exporter == "legacy" else 18)
    return onnx.load_from_string((_serialised if cache else _serialised.__wrapped__)(name, exporter, opset))


@functools.lru_cache(maxsize=None)
def _serialised(name: str, exporter: str, opset: int) -> bytes:
    import torch

    architecture = ARCHITECTURES[name]
    arguments: dict[str, Any] = {"input_names": list(architecture.input_names), "opset_version": opset}
    buffer = io.BytesIO()
    with _quiet():  # not under no_grad: nn.MultiheadAttention would take its fused inference path, which has no ONNX form
        model, inputs = architecture.build(), architecture.inputs(_EXPORT_BATCH)
        if hasattr(model, "exportable"):
            model = model.exportable(exporter)
        if exporter == "legacy":
            torch.onnx.export(model, inputs, buffer, dynamo=False, dynamic_axes=architecture.dynamic_axes, **arguments)
            return buffer.getvalue()
        shapes = tuple(architecture.dynamic_axes.values())
        program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False, **arguments)
        return program.model_proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor log lines nor prints: exporters are talkative and the tests are about their output."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
