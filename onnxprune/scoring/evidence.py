"""What criteria may know beside the weights: statistics of activations, curvature and gradients, each found once.

Statistics are sums made inside ONNX Runtime (`runtime.statistics`); gradients come from the bridge. All is lazy: a
criterion pays for what it looks at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Inputs, samples_by_name
from onnxprune.data.calibration import Calibration
from onnxprune.data.fit import fixed_batch
from onnxprune.errors import RecipeError
from onnxprune.graph.branches import taken_branch, with_branch_inlined
from onnxprune.graph.linear import Linear, Matrix, linear_layers
from onnxprune.graph.spelled_experts import with_experts_spelled
from onnxprune.runtime.routing import routed_shares
from onnxprune.runtime.statistics import ChannelMoments, Moments
from onnxprune.runtime.stream.channels import streamed_channel_moments
from onnxprune.runtime.stream.gather import Batches, Gatherer, fitting_batches
from onnxprune.runtime.stream.routed import routed_moments
from onnxprune.structure.analysis import analyse
from onnxprune.structure.routers import Router, routers
from onnxprune.structure.structure import Structure

if TYPE_CHECKING:
    from onnxprune.scoring.backward import Gradients

DAMPING = 0.01
"""Added to a Hessian's diagonal, relative to its mean (Frantar and Alistarh 2023, SparseGPT, section 3.1)."""

_UNMEASURED = "it is tied, computed, in a branch, in a few bits, or of an operator without a plain matrix"

HELD = 64
"""So many inputs are held back at most."""

TOGETHER = 2**26
"""Entries of the Gram matrices that are held together: 512 MiB."""

KEPT = 2**23
"""Entries of the largest inverse that is kept, in case that somebody asks for it again: 64 MiB."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """A normalised model with calibration data.

    Attributes:
        structure: The analysis of the model.
        inputs: Batches by input name; may be empty for criteria that need none.
        labels: Class numbers or targets, one for each sample; None where there are none.
        seed: Of what is drawn at random: sampled labels, probes.
        batch: Batches run at once.
        steps: Optimiser steps of criteria that train.
        tell: Called with a line for each block of the model that the samples go through.
    """

    structure: Structure
    inputs: Inputs
    labels: npt.NDArray[np.generic] | None = None
    seed: int = 0
    batch: int = 32
    steps: int = 200
    tell: Callable[[str], None] | None = None

    @classmethod
    def of(
        cls, structure: Structure, calibration: Calibration, seed: int = 0, tell: Callable[[str], None] | None = None
    ) -> Evidence:
        """Return what criteria may know of a model: statistics of these samples, found when they are asked for.

        Of a merged decoder it is the branch that they take, put in the place of its If: weights keep their names.
        """
        branch = taken_branch(structure.model, calibration.inputs)
        if branch is not None:
            structure = analyse(with_branch_inlined(structure.model, branch))
        return cls(structure, calibration.inputs, calibration.labels, seed, tell=tell)

    @functools.cached_property
    def layers(self) -> Mapping[str, Linear]:
        """The contractions whose inputs can be measured, by the name of their weight.

        Those of mixtures of experts in one operator are layers of `measured`, with weights of the same names.
        """
        layers = {layer.name: layer for layer in linear_layers(self.structure.model, stacks=True)[0]}
        if self.measured is not self.structure.model:
            spelled = linear_layers(self.measured, stacks=True)[0]
            layers |= {layer.name: layer for layer in spelled if layer.stack is not None and layer.name not in layers}
        return layers

    @functools.cached_property
    def measured(self) -> ir.Model:
        """The model that the samples go through: with mixtures of experts that are one operator spelled out."""
        return with_experts_spelled(self.structure.model) or self.structure.model

    def layer(self, name: str) -> Linear:
        """Return one of them.

        Raises:
            RecipeError: The inputs of this weight cannot be measured.
        """
        if name not in self.layers:
            raise RecipeError(
                f"the inputs of the weight {name!r} cannot be measured ({_UNMEASURED}): leave it alone with --exclude, "
                "or choose a criterion that needs no activations"
            )
        return self.layers[name]

    def obstacle(self, looks_at: LooksAt, name: str) -> str:
        """Say why what a criterion looks at cannot be had of a weight, empty where it can."""
        if looks_at == "activations" and name not in self.layers:
            return f"what it reads cannot be measured ({_UNMEASURED})"
        if looks_at == "gradients" and name not in self.gradients.parameters:
            return "it has no gradient in the bridge"
        return ""

    @functools.cached_property
    def input_moments(self) -> Mapping[str, ChannelMoments]:
        """For each weight, sums of what its layer reads, by input channel; of a stack by expert and channel."""
        plain = {name: x for name, x in self.layers.items() if x.stack is None}
        stacks = [x for x in self.layers.values() if x.stack is not None]
        places = {name: (str(x.data.name), self._channel_axis(x)) for name, x in plain.items()}
        feeds = fitting_batches(self.structure.model, self.inputs, self.batch)
        by_place = streamed_channel_moments(
            self.structure.model, list(dict.fromkeys(places.values())), feeds, self.tell
        )
        moments = {name: by_place[place] for name, place in places.items() if place in by_place}
        if stacks:
            samples = Batches.of(self.measured, self.inputs, self.batch)
            moments |= routed_moments(self.measured, stacks, samples, self.tell)
        return moments

    @functools.cached_property
    def routed(self) -> Sequence[tuple[Router, Matrix]]:
        """The routers of mixtures of experts, with the share of the tokens that each expert gets."""
        known = list(routers(self.structure))
        feeds = fitting_batches(self.structure.model, self.inputs, self.batch)
        return list(zip(known, routed_shares(self.structure.model, known, feeds), strict=True)) if known else []

    def _channel_axis(self, layer: Linear) -> int:
        shape = self.structure.facts.shape(layer.data)
        return layer.data_axis % len(shape) if shape is not None else 1

    def moments(self, name: str) -> Moments:
        """Return the Gram matrix of what a layer reads; its targets are the layer's own outputs."""
        self.layer(name)
        return self._moments(self._passes[name])[name]

    @functools.cached_property
    def _passes(self) -> Mapping[str, tuple[str, ...]]:
        """For each layer, those that are measured together with it: of blocks side by side, as `TOGETHER` allows."""
        passes: list[list[str]] = [[]]
        room = TOGETHER
        for layers in self._gatherer.by_block(list(self.layers.values())):
            entries = sum(map(_entries, layers))
            if entries > room and passes[-1]:
                passes.append([])
                room = TOGETHER
            passes[-1] += [layer.name for layer in layers]
            room -= entries
        return {name: tuple(names) for names in passes for name in names}

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one object a run, and Gram matrices are large
    def _moments(self, names: tuple[str, ...]) -> Mapping[str, Moments]:
        layers = [self.layers[name] for name in names]
        return {name: moments for part in self._gatherer.parts(layers) for name, moments in part.items()}

    @functools.cached_property
    def _gatherer(self) -> Gatherer:
        return Gatherer(self.measured, self.samples, self.tell)

    @functools.cached_property
    def samples(self) -> Batches:
        """The inputs as a stream reads them, without those held back."""
        return Batches.of(self.measured, self._part(self.held, None), self.batch)

    @property
    def held(self) -> int:
        """How many inputs, the first ones, Gram matrices are not made from, so that effects can be measured on them."""
        samples = samples_by_name(self.structure.model, self.inputs)
        batch = fixed_batch(self.structure.model, tuple(samples.axes.values())) or 1
        return min(HELD, samples.count // 4) // batch * batch

    def held_inputs(self, most: int) -> Inputs:
        """Return the inputs that are held back, so many at most; where there are too few to hold any, the first."""
        samples = samples_by_name(self.structure.model, self.inputs)
        batch = fixed_batch(self.structure.model, tuple(samples.axes.values())) or 1
        count = min(self.held or samples.count, max(most, batch))
        return samples.part(0, count)

    def _part(self, start: int, stop: int | None) -> Inputs:
        samples = samples_by_name(self.structure.model, self.inputs)
        return samples.part(start, samples.count if stop is None else stop)

    def inverse_hessian(self, name: str, *, centred: bool = False) -> Matrix:
        """Return (A^T A / n + damping)^-1, shape [g, K, K]; the Hessian of a layer's error is twice A^T A / n.

        ``centred`` takes A less its means: the Hessian where the bias adapts as well.
        """
        large = _entries(self.layer(name)) > KEPT
        return self._inverse(name, centred) if large else self._kept_inverse(name, centred)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - one object a run
    def _kept_inverse(self, name: str, centred: bool) -> Matrix:
        return self._inverse(name, centred)

    def _inverse(self, name: str, centred: bool) -> Matrix:
        moments = self.moments(name)
        hessian = moments.aa / moments.rows
        if centred:
            means = moments.a / moments.rows
            hessian = hessian - means[:, :, None] * means[:, None, :]
        means_of = np.einsum("gkk->g", hessian) / hessian.shape[1]
        typical = float(means_of[means_of > 0].mean()) if (means_of > 0).any() else DAMPING
        for block, mean in zip(hessian, means_of.tolist(), strict=True):  # a group that read nothing: as the others
            block.flat[:: len(block) + 1] += DAMPING * mean if mean > 0 else typical
        return np.asarray(np.linalg.inv(hessian), np.float64)

    @functools.cached_property
    def gradients(self) -> Gradients:
        """Gradients of the loss, by the bridge.

        Raises:
            OnnxPruneError: PyTorch is not installed.
        """
        import onnxprune.bridge  # noqa: F401 - says what to install
        from onnxprune.scoring.backward import Gradients

        return Gradients(self.structure.model, self.inputs, self.labels, self.seed, self.batch)


def _entries(layer: Linear) -> int:
    """Entries of a layer's Gram matrices."""
    shape = layer.weight.shape.numpy() if layer.weight.shape is not None else (1, 1)
    if layer.stack is not None:
        return int(layer.groups * shape[layer.input_axis] ** 2)
    return int(layer.groups * (math.prod(shape) // max(1, shape[layer.output_axis])) ** 2)


LooksAt = Literal["weights", "activations", "gradients"]
