"""Training data that differ from epoch to epoch: images that are cut and mirrored, and samples mixed with each other.

What is drawn follows from the seed, the step and the process alone, so that a training that goes on from a checkpoint
draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from onnxprune.data.sources import Axes, Batch
from onnxprune.errors import DataError
from onnxprune.plugins import Plugins, Registry, judged
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.feed import Shard
from onnxprune.training.losses import Loss, Tensors

Layout = Literal["NCHW", "NHWC"]
Augment = Callable[[Tensor, torch.Generator], Tensor]
"""From images [N, C, H, W] and a generator on the CPU to images of the same shape."""


def _no_images(answer: object, images: Tensor, *_: object) -> str:
    fits = isinstance(answer, Tensor) and answer.shape == images.shape
    return "" if fits else f"is no tensor of the shape of the images, {list(images.shape)}"


AUGMENTATIONS: Registry[Augment] = Registry(
    "augmentation",
    Plugins("onnxprune.augmentations"),
    flag="--augment",
    of_function=lambda name, function: judged(function, name, _no_images),
)

_IMAGE_AXES = 4
_MARGIN = 8
"""A crop moves an image by up to this part of its side: 4 pixels of 32, as He et al. 2016 have it."""


@AUGMENTATIONS.register("crop")
def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its side, its edges mirrored into the gap. Source: He et al. 2016, 4.2."""
    count, _, height, width = images.shape
    rows = _moved(count, height, generator).to(images.device)
    columns = _moved(count, width, generator).to(images.device)
    samples = torch.arange(count, device=images.device)
    moved = images.permute(0, 2, 3, 1)[samples[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()


def _moved(count: int, side: int, generator: torch.Generator) -> Tensor:
    """The indices along an axis, of each sample: moved, and mirrored at both ends."""
    most = side // _MARGIN
    by = torch.randint(-most, most + 1, (count, 1), generator=generator)
    indices = (torch.arange(side) + by).abs()
    return torch.where(indices > side - 1, 2 * (side - 1) - indices, indices)


@AUGMENTATIONS.register("flip")
def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with a probability of one half."""
    mirrored = torch.rand(images.shape[0], generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class Varied:
    """A batch as it is trained on.

    Attributes:
        inputs, targets: The samples; mixed with their partners, where they are.
        partners: The targets of the partners.
        share: How much each sample counts beside its partner; 1 where nothing is mixed.
    """

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    partners: tuple[Tensor, ...] = ()
    share: float = 1.0

    def loss(self, loss: Loss, outputs: Tensors, original: Tensors) -> Tensor:
        """The loss on both targets, by their shares. Source: Zhang et al. 2018 (mixup), section 2."""
        first = loss(outputs, self.targets, original)
        if self.share == 1.0 or not self.targets:
            return first
        return self.share * first + (1 - self.share) * loss(outputs, self.partners, original)


@dataclass(frozen=True)
class Variation:
    """How batches are varied.

    Attributes:
        augment: Functions on images, in order.
        mixup: The parameter of the Beta distribution that shares are drawn from; 0 mixes nothing.
        axes, target_axes: Which axis of each input and target counts samples.
        layout: Where images have their channels.
        seed: Of all that is drawn.
    """

    augment: tuple[Augment, ...] = ()
    mixup: float = 0.0
    axes: Axes = ()
    target_axes: Axes = ()
    layout: Layout = "NCHW"
    seed: int = 0

    @classmethod
    def of(cls, settings: TrainSettings, sample: Batch, layout: Layout = "NCHW") -> Variation:
        """Return what the settings ask for.

        Args:
            settings: Of the training.
            sample: Some samples, to see what they are.
            layout: Where images have their channels.

        Raises:
            DataError: The data do not allow it.
            RecipeError: There is no such augmentation.
        """
        axes, target_axes = sample.sample_axes, sample.target_sample_axes
        if settings.augment:
            if not any(map(_is_image, sample.inputs, axes)):
                raise DataError("--augment is for images, and no input of the model has their four axes.")
            if any(target.ndim >= _IMAGE_AXES - 1 for target in sample.targets):
                raise DataError(
                    "--augment moves images but not their targets, and these data have a target for each place."
                )
        if settings.mixup and any(
            a.dtype.kind != "f" for a, x in zip(sample.inputs, axes, strict=True) if x is not None
        ):
            raise DataError("--mixup mixes numbers, and an input of the model holds whole numbers, such as tokens.")
        functions = tuple(AUGMENTATIONS.find(name) for name in settings.augment)
        return cls(functions, settings.mixup, axes, target_axes, layout, settings.seed)

    def __call__(self, shard: Shard, step: int, rank: int = 0) -> Varied:
        """Vary the batch of a step."""
        if not self.augment and not self.mixup:
            return Varied(shard.inputs, shard.targets)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 1009 + rank)
        inputs = tuple(self._augmented(x, axis, generator) for x, axis in zip(shard.inputs, self.axes, strict=True))
        if not self.mixup:
            return Varied(inputs, shard.targets)
        share = float(np.random.default_rng((self.seed, step)).beta(self.mixup, self.mixup))
        count = next(x.shape[a] for x, a in zip(inputs, self.axes, strict=True) if a is not None)
        order = torch.randperm(count, generator=generator).to(inputs[0].device)
        mixed = [
            x if axis is None else share * x + (1 - share) * x.index_select(axis, order)
            for x, axis in zip(inputs, self.axes, strict=True)
        ]
        return Varied(tuple(mixed), shard.targets, _in_order(shard.targets, self.target_axes, order), share)

    def _augmented(self, images: Tensor, axis: int | None, generator: torch.Generator) -> Tensor:
        if not self.augment or axis != 0 or images.dim() != _IMAGE_AXES:
            return images
        channels_last = self.layout == "NHWC"
        images = images.permute(0, 3, 1, 2) if channels_last else images
        for function in self.augment:
            images = function(images, generator)
        return images.permute(0, 2, 3, 1).contiguous() if channels_last else images


def _is_image(array: np.ndarray, axis: int | None) -> bool:
    return axis == 0 and array.ndim == _IMAGE_AXES


def _in_order(targets: Sequence[Tensor], axes: Axes, order: Tensor) -> tuple[Tensor, ...]:
    return tuple(t if a is None else t.index_select(a, order) for t, a in zip(targets, axes, strict=True))
