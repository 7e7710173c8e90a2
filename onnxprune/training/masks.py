"""Masks hold exactly: a pruned weight is zero before, during and after training, whatever the optimiser does.

Masks are {initializer name: bool array of its shape}, True where the weight stays; single weights, N:M patterns and
whole channels are all the same here. During training the gradient is masked (so that neither momentum nor a gradient
norm knows of pruned weights) and the weight again after each step (so that weight decay, rounding or a user's optimiser
cannot bring one back).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxprune.errors import RecipeError
from onnxprune.graph.tensors import like

Mask = npt.NDArray[np.bool_]
Masks = Mapping[str, Mask]


class BoundMasks:
    """The masks of a module's parameters, on the parameters' device."""

    def __init__(self, module: nn.Module, names: Mapping[str, str], masks: Masks) -> None:
        """Bind `masks` to the parameters of `module`, named by `names` (parameter name -> initializer name).

        Raises:
            RecipeError: A mask has no parameter, or another shape than it.
        """
        by_initializer = {names[name]: p for name, p in module.named_parameters() if name in names}
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []
        for name, mask in masks.items():
            if name not in by_initializer:
                raise RecipeError(f"The mask '{name}' belongs to no weight that is trained.")
            parameter = by_initializer[name]
            if tuple(parameter.shape) != mask.shape:
                raise RecipeError(f"The mask of '{name}' has shape {mask.shape}, its weight {tuple(parameter.shape)}.")
            if not mask.all():
                self._pairs.append((parameter, torch.from_numpy(np.ascontiguousarray(mask)).to(parameter.device)))
        self._weights: list[Tensor] = [parameter for parameter, _ in self._pairs]
        self._keep = [mask.to(parameter.dtype) for parameter, mask in self._pairs]

    @torch.no_grad()
    def weights(self) -> None:
        """Multiply the weights by their masks, after a step."""
        if self._weights:
            torch._foreach_mul_(self._weights, self._keep)

    @torch.no_grad()
    def gradients(self) -> None:
        """Multiply the gradients by their masks, before a step."""
        pairs = [(w.grad, k) for w, k in zip(self._weights, self._keep, strict=True) if w.grad is not None]
        if pairs:
            torch._foreach_mul_([grad for grad, _ in pairs], [keep for _, keep in pairs])

    def hold(self) -> None:
        """Mask each gradient as it is made, for loops that are not ours.

        With a gradient of zero, momentum stays zero and so does a weight that is zero, decayed or not.
        """
        for weight, keep in zip(self._weights, self._keep, strict=True):
            weight.register_hook(lambda g, keep=keep: g * keep.to(g))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def zero(self) -> None:
        """Write +0.0 at every pruned place: unlike a product this also holds for -0.0, infinity and NaN."""
        for parameter, mask in self._pairs:
            parameter.masked_fill_(~mask, 0.0)


def apply_masks(model: ir.Model, masks: Masks) -> ir.Model:
    """A copy of `model` whose pruned float weights are exactly zero.

    Quantised weights are left as they are: their zero is a zero point, which whoever made the mask has to write.

    Raises:
        RecipeError: A mask has no initializer, or another shape than it.
    """
    masked = model.clone()
    for name, mask in masks.items():
        value = masked.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise RecipeError(f"The mask '{name}' belongs to no initializer of the model.")
        array = value.const_value.numpy()
        if array.shape != mask.shape:
            raise RecipeError(f"The mask of '{name}' has shape {mask.shape}, its weight {array.shape}.")
        if not mask.all() and value.const_value.dtype.is_floating_point():
            value.const_value = like(value.const_value, np.where(mask, array, array.dtype.type(0)))
    return masked


def masks_of_zeros(model: ir.Model, names: Mapping[str, object] | None = None) -> dict[str, Mask]:
    """The masks that a pruned model carries in itself: its non-zero weights, for `names` or all float initializers."""
    masks = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is None or (names is not None and name not in names):
            continue
        if value.dtype is not None and value.dtype.is_floating_point():
            masks[name] = np.asarray(value.const_value.numpy() != 0)
    return masks


def sparsity_of(masks: Masks) -> float:
    """Share of the masked weights that is pruned; 0 without masks."""
    total = sum(mask.size for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / total if total else 0.0
