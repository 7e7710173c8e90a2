"""A pruned model for a training loop of the user's own: PyTorch's, Lightning's, Hugging Face's, or any other.

    loop = OwnLoop("pruned.onnx", original="model.onnx")
    ...train loop.module, with loop.distance(outputs, *inputs) as the loss or beside it...
    loop.save("trained.onnx")

What pruning made zero stays zero whatever the loop does: gradients of these weights are zero, and so is what is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune import model_io
from onnxprune.bridge import OnnxModule, channels_last, to_torch, write_back
from onnxprune.bridge.module import ModelLike, load_ir
from onnxprune.data.detection.decode import recognise
from onnxprune.data.detection.heads import picture_size
from onnxprune.training.evaluate import as_tuple, to_numpy
from onnxprune.training.likeness import kind_of_outputs
from onnxprune.training.losses import LossFunction, distillation, finish
from onnxprune.training.masks import BoundMasks, Masks, apply_masks, masks_of_zeros
from onnxprune.training.retraining import frozen_module
from onnxprune.training.view import training_view


class OwnLoop:
    """A pruned model as a module to train, and the way back into the file.

    Args:
        model: The pruned model: a path, an `onnx.ModelProto` or an `onnx_ir.Model`. It is not changed.
        original: The model before pruning, for `distance`.
        masks: True where a weight stays, by initializer name. By default what is zero in the model stays zero.
        temperature: Of class distributions in `distance`.

    Attributes:
        module: What to train. Its arguments are the model's inputs, its result the outputs. Where the file ends in a
            Softmax, it gives what stands in front of it, so that cross-entropy is exact. Numbers of 16 bits are
            trained in 32.
        model: The pruned model, as it was.

    Raises:
        ModelError: The bridge does not know an operator of the model.
        RecipeError: A mask fits no weight.

    Example:
        loop = OwnLoop("pruned.onnx", original="model.onnx")
        optimizer = torch.optim.AdamW(loop.module.parameters(), lr=1e-3)
        for images in batches:
            loss = loop.distance(loop.module(images), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loop.save("trained.onnx")
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        original: ModelLike | None = None,
        masks: Masks | None = None,
        temperature: float = 2.0,
    ) -> None:
        self.model = load_ir(model)
        view, self._heads = training_view(self.model)
        self.module: OnnxModule = channels_last(to_torch(view))
        names = self.module.onnx_names
        trained = {names[name] for name, _ in self.module.named_parameters() if name in names}
        zeros = masks_of_zeros(self.model, dict.fromkeys(trained))
        self.masks: Masks = {n: m for n, m in (zeros if masks is None else masks).items() if not m.all()}
        self._bound = BoundMasks(self.module, names, self.masks)
        self._bound.zero()
        self._bound.hold()
        self._original = None if original is None else frozen_module(load_ir(original))
        self._temperature = temperature
        self._loss: LossFunction | None = None

    def distance(self, outputs: Tensor | Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """How far outputs are from the original's for the same inputs, the mean over the batch: distillation.

        Args:
            outputs: What `module` gave.
            inputs: What it was given, in the order of the model's inputs.

        Raises:
            ValueError: No original was given.
        """
        if self._original is None:
            raise ValueError("distance compares with the original: OwnLoop(pruned, original=...)")
        teacher = self._original.to(inputs[0].device)
        with torch.no_grad():
            theirs = as_tuple(teacher(*inputs))
        if self._loss is None:
            self._loss = self._loss_on(theirs, inputs)
        return self._loss(as_tuple(outputs), (), theirs)

    def _loss_on(self, theirs: Sequence[Tensor], inputs: Sequence[Tensor]) -> LossFunction:
        """The loss that suits what the original gives."""
        kinds = [kind_of_outputs(to_numpy(output)) for output in theirs]
        classes = {i for i, head in enumerate(self._heads) if head.kind != "values"}
        whole = [to_numpy(output) for output in finish(self._heads, theirs)]
        detector = recognise(picture_size([to_numpy(x) for x in inputs]), whole)
        detector = None if detector is None or detector.final else detector
        return distillation(self._heads, classes, self._temperature, kinds, detector)

    def trained(self) -> ir.Model:
        """The model with the module's numbers; what was pruned is exactly zero. The model itself stays as it was."""
        return apply_masks(write_back(self.module, self.model), self.masks)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the trained model.

        Args:
            path: The file.
            force: Whether a file that is there is overwritten.

        Raises:
            ModelError: It is there already, or cannot be written.
        """
        model_io.save(self.trained(), Path(path), force=force)
