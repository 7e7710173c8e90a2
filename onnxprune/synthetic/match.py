"""Drawn inputs become more like what the model was trained on, by gradient steps on the inputs.

Two things tell what that was:

    BatchNormalization    mean and deviation by channel of what it reads: sum |m - mean|^2 / var + |s / sqrt(var) - 1|^2
                          (Yin et al. 2020, DeepInversion, eq. 4; Cai et al. 2020, ZeroQ, eq. 3)
    classes               an input of a class is recognised: cross-entropy to a class drawn at random
                          (Yin et al. 2020, eq. 1; Mordvintsev et al. 2015), which works where an exporter has folded
                          BatchNormalization too

Signals are changed as the white noise that they were made from, so that they keep their spectrum (Olah et al. 2017).
Pictures of `leaves` are of few classes as they are drawn. Where classes alone tell, they are changed just so much that
most are recognised; with more, what is recognised is in no natural picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge import OnnxModule, to_torch
from onnxprune.bridge.dtypes import from_numpy
from onnxprune.data.batches import batches
from onnxprune.data.fit import fixed_batch
from onnxprune.errors import ModelError
from onnxprune.runtime.session import make_session, run
from onnxprune.runtime.stream.effects import CLASSES
from onnxprune.synthetic.draw import Drawn, Field
from onnxprune.synthetic.noise import coloured
from onnxprune.training.likeness import kind_of_outputs

Array = npt.NDArray[Any]

CHUNK = 128  # samples that are matched together
_RATE = 0.05  # of Adam, on noise of variance 1
GENTLE_STEPS = 16  # bring pictures that classes alone change all that can be gained
_PATH = 0.16  # rate times steps of a picture that classes alone change
_MOVED = 32  # pictures are moved by at most this part of a side, so that nothing hangs on single pixels
_CLASS_WEIGHT = 0.3  # beside the statistics
_GAINS = (1 / 16, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 16.0, 64.0)
_LOOKED_AT = 64  # samples that tell what outputs are
_MANY = 10  # scores of so many classes at least are told from other numbers though none stands out
_LEAST_CHUNK = 16
_CACHED = 16  # samples whose activations stay in the cache of a CPU: three times as fast as 64


@dataclass(frozen=True, eq=False)
class Norm:
    """A BatchNormalization: the place among the view's outputs of what it reads, mean and deviation by channel."""

    place: int
    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True, eq=False)
class View:
    """The model with what its BatchNormalizations read among its outputs.

    Attributes:
        module: It.
        norms: The BatchNormalizations of the main graph.
        classes: The outputs that are of classes, each with whether these are probabilities.
        chunk: So many samples are matched together.
        gentle: Whether the inputs are pictures of which only classes tell, which are changed as little as will do.
    """

    module: OnnxModule
    norms: Sequence[Norm]
    classes: Mapping[int, bool]
    chunk: int
    gentle: bool

    @property
    def tells(self) -> str:
        """What can be matched, in words; empty where there is nothing, or too few samples run together to match."""
        if self.chunk < _LEAST_CHUNK:
            return ""
        parts = ("the statistics of BatchNormalization", bool(self.norms)), ("random classes", bool(self.classes))
        return " and ".join(text for text, there in parts if there)


def view_of(model: ir.Model, drawn: Drawn) -> View:
    """Look for what can be matched in a normalised model.

    Raises:
        ModelError: The bridge does not know an operator of the model.
        DataError: The model does not run the inputs.
    """
    view = model.clone()
    norms = []
    for value, mean, variance in _statistics(view):
        if not any(value is output for output in view.graph.outputs):
            view.graph.outputs.append(value)
        place = next(i for i, output in enumerate(view.graph.outputs) if output is value)
        deviation = np.sqrt(np.maximum(variance, 1e-10))
        norms.append(Norm(place, from_numpy(mean), from_numpy(deviation)))
    classes = _classes(model, drawn, doubtful=not norms)
    module = to_torch(view)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    gentle = not norms and all(field.picture for field in drawn.fields.values())
    return View(module, norms, classes, _chunk(module, model, drawn), gentle)


def match(view: View, drawn: Drawn, updates: int, seed: int, tell: Callable[[str], None]) -> dict[str, Array]:
    """Return the fields of a draw after so many gradient steps.

    Args:
        view: From `view_of`.
        drawn: The inputs.
        updates: Steps of each sample.
        seed: Of the classes.
        tell: Called with what goes on.

    Raises:
        ModelError: The outputs do not depend on the inputs in a way that gradients see.
    """
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    gain = _best_gain(view, drawn)
    made: dict[str, list[Array]] = {name: [] for name in drawn.fields}
    count = drawn.samples.count
    size = view.chunk if view.norms else min(view.chunk, _CACHED)  # only statistics need many at once
    for start in range(0, count, size):
        tell(f"draw inputs {start:,} of {count:,}")
        chunk = np.arange(start, min(start + size, count))
        noise = {n: from_numpy((gain * f.white[chunk]).astype(np.float32)) for n, f in drawn.fields.items()}
        feeds, painters = drawn.samples.take(chunk), {n: Painter.of(f, chunk) for n, f in drawn.fields.items()}
        labels = dict.fromkeys(view.classes)
        rate = _PATH / updates if view.gentle else _RATE
        optimizer = torch.optim.Adam([tensor.requires_grad_() for tensor in noise.values()], rate)
        for _ in range(updates):
            inputs = {n: painters[n](noise[n]) if n in noise else from_numpy(a) for n, a in feeds.items()}
            inputs |= {n: _moved(inputs[n], field, rng) for n, field in drawn.fields.items() if field.picture}
            outputs = _outputs(view.module, inputs)
            loss = _loss(view, outputs, labels, generator)
            if not loss.requires_grad:
                raise ModelError("no gradient reaches the inputs")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for name, tensor in noise.items():
            made[name].append(painters[name](tensor.detach()).numpy().astype(drawn.fields[name].dtype))
    return {name: np.concatenate(parts) for name, parts in made.items()}


@dataclass(frozen=True, eq=False)
class Painter:
    """`Field.values` of a part of the samples, for tensors."""

    spectrum: Tensor | None
    channels: int | None
    mixture: Tensor | None
    factor: Tensor
    offset: Tensor

    @staticmethod
    def of(field: Field, chunk: Array) -> Painter:
        """For some samples of a field."""
        spectrum = mixture = None
        if field.spectrum is not None:
            spectrum = from_numpy(field.spectrum[chunk].astype(np.float32))
            mixture = from_numpy(coloured(np.eye(field.white.shape[1])[None])[0].astype(np.float32))
        parts = (from_numpy(array.astype(np.float32)) for array in (field.factor, field.offset))
        return Painter(spectrum, field.channels, mixture, *parts)

    def __call__(self, white: Tensor) -> Tensor:
        numbers = white
        if self.spectrum is not None and self.mixture is not None and self.channels is not None:
            places = tuple(range(2, white.dim()))
            numbers = torch.fft.irfftn(
                torch.fft.rfftn(white, dim=places) * self.spectrum, s=white.shape[2:], dim=places
            )
            numbers = torch.einsum("dc,nc...->nd...", self.mixture, numbers).movedim(1, self.channels)
        return self.factor * numbers + self.offset


def _moved(pictures: Tensor, field: Field, rng: np.random.Generator) -> Tensor:
    """Pictures moved a little, at random (Mordvintsev, Olah and Tyka 2015)."""
    axes = [axis for axis in (1, 2, 3) if axis != field.channels]
    by = [int(rng.integers(-most, most + 1)) for most in (pictures.shape[axis] // _MOVED for axis in axes)]
    return pictures.roll(by, axes)


def _statistics(model: ir.Model) -> list[tuple[ir.Value, Array, Array]]:
    """What each BatchNormalization of the main graph reads, with running mean and variance."""
    read = []
    for node in model.graph:
        training = node.attributes.get_int("training_mode", 0)
        if node.op_type != "BatchNormalization" or node.domain != "" or training:
            continue
        tensors = [None if v is None else ir.convenience.get_const_tensor(v) for v in node.inputs[3:5]]
        value = node.inputs[0]
        if value is not None and not value.is_graph_input() and all(t is not None for t in tensors):
            mean, variance = (t.numpy().astype(np.float32) for t in tensors if t is not None)
            read.append((value, mean, variance))
    return read


def _classes(model: ir.Model, drawn: Drawn, doubtful: bool) -> dict[int, bool]:
    """The outputs [samples, classes], and whether they are probabilities; where asked for, those that may be scores."""
    few, session = drawn.samples.part(0, _LOOKED_AT), make_session(model)
    outputs = [run(session, feeds) for feeds in batches(model, few)]
    of_classes = {}
    for place, value in enumerate(model.graph.outputs):
        arrays = [np.asarray(part[str(value.name)]) for part in outputs]
        array = np.concatenate(arrays) if arrays[0].ndim == 2 else arrays[0]
        if array.ndim == 2 and array.shape[1] > 1 and array.dtype == np.float32:
            kind = kind_of_outputs(array)
            flat = doubtful and kind == "values" and array.shape[1] >= _MANY and array.min() < 0 < array.max()
            if kind in CLASSES or flat:
                of_classes[place] = kind == "probabilities"
    return of_classes


def _chunk(module: OnnxModule, model: ir.Model, drawn: Drawn) -> int:
    """How many samples the module takes at once: of a fixed batch more, where they turn out not to see each other."""
    fixed = fixed_batch(model)
    if fixed is None or fixed >= CHUNK:
        return fixed or CHUNK
    try:
        with torch.no_grad():
            one, many = (
                _outputs(module, {n: from_numpy(a) for n, a in drawn.samples.part(0, size).items()})
                for size in (fixed, 4 * fixed)
            )
    except Exception:  # whatever a graph with constant shapes raises in PyTorch
        return fixed
    same = all(
        b.shape[1:] == a.shape[1:] and len(b) == 4 * len(a) and torch.allclose(b[: len(a)], a, rtol=1e-3, atol=1e-4)
        for a, b in zip(one, many, strict=True)
        if a.dim()
    )
    return CHUNK if same else fixed


def _outputs(module: OnnxModule, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    outputs = module(*(inputs[name] for name in module.input_names))
    return outputs if isinstance(outputs, (tuple, list)) else (outputs,)


def _loss(
    view: View, outputs: Sequence[Tensor], labels: dict[int, Tensor | None], generator: torch.Generator
) -> Tensor:
    """What is told above; the classes of a chunk are drawn once."""
    loss = torch.zeros(())
    for norm in view.norms:
        loss = loss + _apart(norm, outputs[norm.place]) / len(view.norms)
    for place, probabilities in view.classes.items():
        output = outputs[place]
        drawn = labels[place]
        if drawn is None:
            drawn = labels[place] = torch.randint(0, output.shape[1], (len(output),), generator=generator)
        scores = output.clamp_min(1e-12).log() if probabilities else output
        weight = _CLASS_WEIGHT if view.norms else 1.0
        loss = loss + weight * F.cross_entropy(scores, drawn) / len(view.classes)
    return loss


def _apart(norm: Norm, values: Tensor) -> Tensor:
    """How far mean and deviation by channel are from those of the training."""
    flat = values.movedim(1, 0).flatten(1)
    mean = (flat.mean(1) - norm.mean) / norm.deviation
    deviation = flat.std(1, correction=0) / norm.deviation - 1
    return (mean.square() + deviation.square()).mean()


def _best_gain(view: View, drawn: Drawn) -> float:
    """What all noise is multiplied by to begin with: the scale of inputs that BatchNormalization knows best."""
    if not view.norms:
        return 1.0
    chunk = np.arange(min(view.chunk, drawn.samples.count))
    feeds = drawn.samples.take(chunk)
    apart = {}
    with torch.no_grad():
        for gain in _GAINS:
            inputs = {n: from_numpy(array) for n, array in feeds.items()}
            for name, field in drawn.fields.items():
                inputs[name] = Painter.of(field, chunk)(from_numpy((gain * field.white[chunk]).astype(np.float32)))
            outputs = _outputs(view.module, inputs)
            apart[gain] = float(sum(_apart(norm, outputs[norm.place]) for norm in view.norms))
    return min(apart, key=lambda gain: (not np.isfinite(apart[gain]), apart[gain]))
