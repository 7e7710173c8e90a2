"""New random weights for a pruned network, each kind of layer by its own usual distribution.

For the comparison that Han et al. 2015 (section 3.3) and Frankle and Carbin 2019 make: is it the surviving weights'
values that matter, or only which of them survived?
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.data.sources import Array
from onnxprune.graph.tensors import like
from onnxprune.plugins import Plugins, Registry
from onnxprune.training.layers import Layer, find_layers
from onnxprune.training.masks import Masks

Initialiser = Callable[[np.random.Generator, tuple[int, ...], int], Array]
"""(generator, shape, fan_in) -> array."""

INITIALISERS: Registry[Initialiser] = Registry("initialiser", Plugins("onnxprune.initialisers"))
"""By the kind of a layer and the role of a tensor in it: ``conv weight``."""


@INITIALISERS.register("conv weight", "fc weight")
def he_normal(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """N(0, 2 / fan_in), for layers followed by a ReLU. Source: He et al. 2015, equation 10."""
    return generator.standard_normal(shape) * np.sqrt(2 / max(1, fan_in))


@INITIALISERS.register("rnn weight", "rnn bias")
def recurrent(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """U(-1/sqrt(H), 1/sqrt(H)), H being the hidden size, as PyTorch does for its recurrent layers."""
    limit = 1 / np.sqrt(max(1, fan_in))
    return generator.uniform(-limit, limit, shape)


@INITIALISERS.register("embedding weight")
def embedding(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """N(0, 0.02^2). Source: Devlin et al. 2019 (BERT), and the GPT family."""
    return generator.standard_normal(shape) * 0.02


@INITIALISERS.register("conv bias", "fc bias", "norm bias", "norm mean")
def zeros(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """Zero."""
    return np.zeros(shape)


@INITIALISERS.register("norm scale", "norm variance")
def ones(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """One."""
    return np.ones(shape)


def reinitialise(model: ir.Model, masks: Masks, seed: int) -> ir.Model:
    """A copy of `model` with new weights where a layer's kind has an initialiser; other numbers stay.

    Each initializer draws from a generator of its own, so that its new values depend on the seed and its name alone.
    The fan-in counts surviving connections: pruned ones carry no signal (Evci et al. 2022, section 4.1).
    """
    fresh = model.clone()
    for name, layer in find_layers(model).items():
        value = fresh.graph.initializers.get(name)
        function = INITIALISERS.get(f"{layer.kind} {layer.role}")
        if value is None or value.const_value is None or function is None:
            continue
        if value.dtype is None or not value.dtype.is_floating_point():
            continue
        old = value.const_value.numpy()
        generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
        new = function(generator, old.shape, _alive(layer, masks)).astype(old.dtype)
        if name in masks:
            new = np.where(masks[name], new, new.dtype.type(0))
        value.const_value = like(value.const_value, new)
    return fresh


def _alive(layer: Layer, masks: Masks) -> int:
    if layer.name not in masks or layer.kind == "rnn":
        return layer.fan_in
    return max(1, round(layer.fan_in * float(masks[layer.name].mean())))
