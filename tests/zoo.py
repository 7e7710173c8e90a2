"""The architectures that the engine is tested on: small, seeded, built from our own PyTorch code, exported to ONNX.

    zoo.cases()                                    -> [(name, exporter, opset), ...] to parametrise tests with
    zoo.export("resnet_basic", "dynamo", 18)       -> onnx.ModelProto, a fresh copy at every call
    zoo.feeds("resnet_basic", batch=3)             -> {input name: numpy array}
    zoo.ARCHITECTURES["resnet_basic"]              what it is, with .build() and .inputs(batch)
    zoo.unsupported("vit", "dynamo", 17)           -> why an exporter cannot do it there, or None

PyTorch is imported only when something is built: `import zoo` works without it, and `zoo.HAS_TORCH` says so.
The networks themselves are in tests/architectures/, one module a family. An export by dynamo takes seconds, so exports
are kept on disk too, under .pytest_cache, keyed by the sources and the versions that made them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    import torch

HAS_TORCH = importlib.util.find_spec("torch") is not None

# What each exporter offers with ONNX Runtime 1.32; `unsupported` gives the exceptions and their reasons.
OPSETS: dict[str, range] = {"legacy": range(13, 21), "dynamo": range(18, 26), "hand": range(13, 27)}
_DEFAULT_OPSET = {"legacy": 17, "dynamo": 18, "hand": 17}
_EXPORT_BATCH = 2  # not 1: torch.export specialises on sizes 0 and 1
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Architecture:
    """One network: `builder` in tests/architectures/`module`.py makes it."""

    name: str
    module: str
    builder: str
    shapes: Mapping[str, tuple[int, ...]]  # per input, without the batch axis
    vocabulary: Mapping[str, int] = field(default_factory=dict)  # integer inputs and the number of their values
    sequence_axis: int | None = None  # dynamic besides the batch axis
    keep_batchnorm: bool = False  # exported without the folding that merges BatchNormalization into Conv
    exporters: tuple[str, ...] = ("legacy", "dynamo")

    def build(self) -> torch.nn.Module:
        """The network in eval mode with seeded random weights, the same at every call."""
        import torch

        with torch.random.fork_rng():
            network = getattr(_sources(self.module), self.builder)()
        module: torch.nn.Module = _sources("weights").randomise(network, self.name)
        return module

    def inputs(self, batch: int, seed: int = 0, sequence: int | None = None) -> tuple[torch.Tensor, ...]:
        """The arrays of `feeds` as tensors, in the order of `forward`."""
        import torch

        return tuple(torch.from_numpy(array) for array in feeds(self.name, batch, seed, sequence).values())

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Per input, the names of its dynamic axes."""
        axes = {0: "batch"} if self.sequence_axis is None else {0: "batch", self.sequence_axis: "sequence"}
        return {name: dict(axes) for name in self.shapes}

    def opsets(self, exporter: str) -> list[int]:
        """The opsets at which `exporter` can do this network, ascending."""
        if exporter not in self.exporters:
            return []
        return [opset for opset in OPSETS[exporter] if unsupported(self.name, exporter, opset) is None]


def _image(size: int) -> dict[str, tuple[int, ...]]:
    return {"image": (3, size, size)}


def _bert(name: str, builder: str) -> Architecture:
    shapes = {"input_ids": (7,), "token_type_ids": (7,), "attention_mask": (7,)}
    vocabulary = {"input_ids": 97, "token_type_ids": 2, "attention_mask": 2}
    return Architecture(name, "transformers", builder, shapes, vocabulary, sequence_axis=1)


def _language(name: str, builder: str) -> Architecture:
    return Architecture(name, "language", builder, {"tokens": (7,)}, {"tokens": 97}, sequence_axis=1)


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in [
        Architecture("resnet_basic", "convolutional", "resnet_basic", _image(32)),
        Architecture("resnet_bottleneck", "convolutional", "resnet_bottleneck", _image(32)),
        Architecture("resnet_batchnorm", "convolutional", "resnet_basic", _image(32), keep_batchnorm=True),
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
        Architecture("rnn", "recurrent", "ElmanRnn", {"x": (6, 12)}),  # fixed length: dynamo unrolls a plain RNN
        Architecture("vit", "transformers", "ViT", _image(16)),
        Architecture("vit_mha", "transformers", "vit_mha", _image(16)),
        Architecture("swin", "swin", "Swin", _image(32)),
        Architecture("windowed", "windowed", "Windowed", _image(16)),
        _bert("bert", "Bert"),
        Architecture("deberta", "disentangled", "Deberta", {"tokens": (7,)}, {"tokens": 97}, sequence_axis=1),
        _language("gpt", "Gpt"),
        _language("llama", "llama"),
        _language("gqa_broadcast", "gqa_broadcast"),
        _language("gqa_sdpa", "gqa_sdpa"),
        _language("mixture_of_experts", "mixture_of_experts"),
        Architecture(
            "control_flow",
            "control_flow",
            "ControlFlow",
            {"image": (3, 16, 16), "steps": (1,)},
            {"steps": 4},
            exporters=("legacy", "dynamo", "hand"),
        ),
    ]
}


def unsupported(name: str, exporter: str, opset: int) -> str | None:
    """Why `exporter` (of PyTorch 2.13) cannot export the architecture at that opset; None when it can."""
    if exporter not in ARCHITECTURES[name].exporters:
        return f"{name} is exported by {', '.join(ARCHITECTURES[name].exporters)} only"
    if exporter == "dynamo" and opset < 18:
        return "dynamo writes opset 18 and leaves the model there when the conversion to an older one fails"
    if exporter == "dynamo" and opset > 25:
        return "dynamo's conversion to opset 26 keeps the old number on models with new operators (Gelu, Attention)"
    if opset not in OPSETS[exporter]:
        return f"{exporter} covers opsets {OPSETS[exporter].start} to {OPSETS[exporter].stop - 1}"
    if exporter == "legacy" and name == "vit_mha" and opset < 14:
        return "legacy exports scaled_dot_product_attention from opset 14 on"
    if exporter == "legacy" and name == "llama" and opset < 14:
        return "legacy exports triu from opset 14 on"
    if exporter == "legacy" and name == "gqa_sdpa":
        return "legacy does not implement scaled_dot_product_attention with enable_gqa"
    return None


def cases(full: bool = False) -> list[tuple[str, str, int]]:
    """(name, exporter, opset) triples: each architecture by each exporter once, or at every opset if `full`."""
    chosen = []
    for name, architecture in ARCHITECTURES.items():
        for exporter in architecture.exporters:
            opsets = architecture.opsets(exporter)
            default = [opset for opset in opsets if opset == _DEFAULT_OPSET[exporter]]
            chosen += [(name, exporter, opset) for opset in (opsets if full else default)]
    return chosen


def feeds(name: str, batch: int, seed: int = 0, sequence: int | None = None) -> dict[str, np.ndarray]:
    """Seeded inputs for ONNX Runtime: float32 from a normal distribution, int64 below the vocabulary's size.

    `sequence` replaces the length of the sequence axis; ValueError where the architecture has none.
    """
    architecture = ARCHITECTURES[name]
    if sequence is not None and architecture.sequence_axis is None:
        raise ValueError(f"{name} has no dynamic sequence axis")
    generator = np.random.default_rng([seed, batch])
    arrays: dict[str, np.ndarray] = {}
    for key, inner in architecture.shapes.items():
        shape = [batch, *inner]
        if sequence is not None and architecture.sequence_axis is not None:
            shape[architecture.sequence_axis] = sequence
        if key in architecture.vocabulary:
            arrays[key] = generator.integers(0, architecture.vocabulary[key], shape)
        else:
            arrays[key] = generator.standard_normal(shape, np.float32)
    return arrays


def export(name: str, exporter: str = "dynamo", opset: int | None = None, *, cache: bool = True) -> onnx.ModelProto:
    """The architecture as an ONNX model with embedded weights; at opset 17 (legacy, hand) or 18 (dynamo) unless told.

    Raises KeyError for an unknown name, ValueError with the reason for a combination that cannot be exported.
    """
    opset = opset or _DEFAULT_OPSET[exporter]
    reason = unsupported(name, exporter, opset)
    if reason:
        raise ValueError(f"{name} by {exporter} at opset {opset}: {reason}")
    return onnx.load_from_string(_cached(name, exporter, opset) if cache else _export(name, exporter, opset))


@functools.cache
def _cached(name: str, exporter: str, opset: int) -> bytes:
    """The export from memory, else from disk, else made now; an unwritable disk is no error."""
    folder = _HERE.parent / ".pytest_cache" / "zoo" / _fingerprint()
    path = folder / f"{name}-{exporter}-{opset}.onnx"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    model = _export(name, exporter, opset)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as beside:
            beside.write(model)
        os.replace(beside.name, path)
    return model


@functools.cache
def _fingerprint() -> str:
    digest = hashlib.sha256()
    for source in [Path(__file__), *sorted((_HERE / "architectures").glob("*.py"))]:
        digest.update(source.read_bytes())
    for package in ("torch", "onnxscript", "onnx"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()[:16]


def _export(name: str, exporter: str, opset: int) -> bytes:
    architecture = ARCHITECTURES[name]
    model: Any = architecture.build()
    if exporter == "hand":
        built: onnx.ModelProto = _sources(architecture.module).hand_built(model, opset)
        return built.SerializeToString()
    if hasattr(model, "exportable"):
        model = model.exportable(exporter)
    # Not under no_grad: nn.MultiheadAttention would take its fused inference path, which has no ONNX form.
    with _quiet():
        return (_export_legacy if exporter == "legacy" else _export_dynamo)(architecture, model, opset)


def _export_legacy(architecture: Architecture, model: torch.nn.Module, opset: int) -> bytes:
    import torch

    modes = torch.onnx.TrainingMode
    buffer: Any = io.BytesIO()
    torch.onnx.export(
        model,
        architecture.inputs(_EXPORT_BATCH),
        buffer,
        dynamo=False,
        input_names=list(architecture.input_names),
        dynamic_axes=architecture.dynamic_axes,
        opset_version=opset,
        training=modes.PRESERVE if architecture.keep_batchnorm else modes.EVAL,
    )
    model_bytes: bytes = buffer.getvalue()
    return model_bytes


def _export_dynamo(architecture: Architecture, model: torch.nn.Module, opset: int) -> bytes:
    import torch

    _forget_rnn_kernels()
    program = torch.onnx.export(
        model,
        architecture.inputs(_EXPORT_BATCH),
        dynamo=True,
        input_names=list(architecture.input_names),
        dynamic_shapes=tuple(architecture.dynamic_axes.values()),
        opset_version=opset,
        optimize=not architecture.keep_batchnorm,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _forget_rnn_kernels() -> None:
    """PyTorch 2.13 exports LSTM and GRU of dynamic length by a kernel registered for the time of the export, but its
    dispatch cache outlives that: without this the second such export of a process fails."""
    import torch

    for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        operator._dispatch_cache.clear()


def _sources(module: str) -> ModuleType:
    package = f"{__package__}.architectures" if __package__ else "architectures"
    return importlib.import_module(f"{package}.{module}")


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
