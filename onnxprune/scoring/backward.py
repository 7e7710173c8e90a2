"""Gradients of a loss by the bridge, for the criteria that look at them. Imports PyTorch.

The model is run in evaluation mode (BatchNorm and Dropout as deployed) in batches; each quantity is found once, for all
weights, when it is first asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge import to_torch
from onnxprune.data.batches import Inputs, batches
from onnxprune.errors import DataError, RecipeError
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.losses import make_loss, recognise
from onnxprune.training.view import training_view

Arrays = Mapping[str, npt.NDArray[np.float32]]
SAMPLES = 256
"""Squared gradients are averaged over at most so many samples: each takes a backward pass of its own."""


class Gradients:
    """Gradients of the mean loss over calibration data, with regard to the weights of a model.

    The loss is cross-entropy for class numbers, mean squared error for real targets, of the model's first output.
    """

    def __init__(
        self, model: ir.Model, inputs: Inputs, labels: npt.NDArray[np.generic] | None, seed: int, batch: int
    ) -> None:
        """Build the module; nothing is run yet."""
        self.model, self.inputs, self.labels, self.seed, self.batch = model, inputs, labels, seed, batch
        view, self.heads = training_view(model)
        self.module = to_torch(view).eval()
        names = self.module.onnx_names
        self.parameters = {names[n]: p for n, p in self.module.named_parameters() if n in names}

    def mean(self, name: str) -> npt.NDArray[np.float32]:
        """Return dL/dw, of the loss averaged over all samples."""
        return self._pick(self._mean, name)

    def squared(self, *, sampled: bool, name: str) -> npt.NDArray[np.float32]:
        """Return E[(dL/dw)^2] over samples: with the given labels, or labels drawn from the model's own outputs."""
        return self._pick(self._squared(sampled), name)

    def flow(self, name: str) -> npt.NDArray[np.float32]:
        """Return w * (H g), by which the squared norm of the gradient falls, to first order, when w goes (GraSP)."""
        return self._pick(self._flow, name)

    def synaptic_flow(self, name: str) -> npt.NDArray[np.float32]:
        """Return |w| * dR/d|w|, R the sum of outputs for ones as input, all weights replaced by their magnitudes."""
        return self._pick(self._synaptic_flow, name)

    def _pick(self, arrays: Arrays, name: str) -> npt.NDArray[np.float32]:
        if name not in arrays:
            raise RecipeError(f"the weight {name!r} has no gradient in the bridge: leave it alone with --exclude")
        return arrays[name]

    @functools.cached_property
    def _mean(self) -> Arrays:
        totals = {n: torch.zeros_like(p) for n, p in self.parameters.items()}
        count = 0
        for x, y in self.samples(self.batch):
            gradients = self._gradient(self.loss(self.forward(x), y))
            for name, gradient in gradients.items():
                totals[name] += gradient * len(y)
            count += len(y)
        return {n: (t / count).detach().numpy() for n, t in totals.items()}

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one object a run
    def _squared(self, sampled: bool) -> Arrays:
        generator = torch.Generator().manual_seed(self.seed)
        totals = {n: torch.zeros_like(p) for n, p in self.parameters.items()}
        count = 0
        for x, y in self.samples(1, limit=SAMPLES, labelled=not sampled):
            output = self.forward(x)
            loss = self._own_loss(output, generator) if sampled else self.loss(output, y)
            for name, gradient in self._gradient(loss).items():
                totals[name] += gradient**2
            count += 1
        return {n: (t / count).detach().numpy() for n, t in totals.items()}

    @functools.cached_property
    def _flow(self) -> Arrays:
        gradients: dict[str, Tensor] = {}
        batches_ = list(self.samples(self.batch))
        count = sum(len(y) for _, y in batches_)
        for x, y in batches_:
            for name, gradient in self._gradient(self.loss(self.forward(x), y)).items():
                gradients[name] = gradients.get(name, torch.zeros_like(gradient)) + gradient * len(y) / count
        totals = {n: torch.zeros_like(p) for n, p in self.parameters.items()}
        for x, y in batches_:
            first = self._gradient(self.loss(self.forward(x), y), create_graph=True)
            along = torch.stack([(first[n] * gradients[n]).sum() for n in first]).sum()
            for name, product in self._gradient(along).items():
                totals[name] += product * len(y) / count
        return {n: (t * self.parameters[n]).detach().numpy() for n, t in totals.items()}

    @functools.cached_property
    def _synaptic_flow(self) -> Arrays:
        view, _ = training_view(self.model)
        module = to_torch(view).eval().double()
        names, means = module.onnx_names, _running_means(view)
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if tensor.is_floating_point() and name in names:
                    tensor.copy_(torch.zeros_like(tensor) if names[name] in means else tensor.abs())
        one = [torch.ones([int(d) if isinstance(d, int) else 1 for d in v.shape or ()], dtype=torch.float64)
               for v in _open_inputs(view)]  # fmt: skip
        outputs = module(*one)
        total = sum(o.sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.is_floating_point())
        named = [(names[n], p) for n, p in module.named_parameters() if n in names]
        gradients = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
        products = {n: p * g for (n, p), g in zip(named, gradients, strict=True) if g is not None}
        peak = max((float(p.detach().abs().max()) for p in products.values()), default=1.0) or 1.0
        return {n: (p.abs() / peak).detach().float().numpy() for n, p in products.items()}

    # -- running ----------------------------------------------------------------------------------------------------

    def samples(
        self, size: int, *, limit: int = 1 << 30, labelled: bool = True
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Batches of inputs in the order of the module's arguments, with labels (or the samples' numbers)."""
        feeds = batches(self.model, self.inputs, size)
        known_labels = self.labels if labelled and self.labels is not None else None
        start = 0
        for feed in feeds:
            count = len(next(iter(feed.values())))
            if start >= limit:
                return
            labels = np.arange(start, start + count) if known_labels is None else known_labels[start : start + count]
            if len(labels) != count:
                raise DataError(f"there are {len(known_labels or ())} labels, but more calibration samples.")
            start += count
            arrays = [torch.from_numpy(np.ascontiguousarray(feed[name])) for name in self.module.input_names]
            yield arrays, torch.from_numpy(np.ascontiguousarray(labels))

    def forward(self, x: list[Tensor], parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Run the module, with other parameters (by initializer name) where some are given."""
        if parameters is None:
            outputs = self.module(*x)
        else:
            named = {n: parameters[i] for n, i in self.module.onnx_names.items() if i in parameters}
            outputs = torch.func.functional_call(self.module, named, tuple(x))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def loss(self, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """The mean loss of a batch."""
        target = labels.long() if not labels.is_floating_point() else labels.float()
        return self._loss(outputs, target)(outputs, (target,), ())

    def _loss(self, outputs: tuple[Tensor, ...], target: Tensor) -> Callable[..., Tensor]:
        heads = recognise(self.heads, outputs)
        return make_loss(TrainSettings(), heads, (target,), (0,))

    def _own_loss(self, outputs: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """-log p of a label drawn from p = softmax over axis 1, or (z - z' )^2 / 2 with unit noise where z is no score.

        The mean square of its gradient is the Gauss-Newton diagonal (Martens 2020, section 9.2).
        """
        scores = outputs[0].float()
        if scores.dim() == 2 and scores.shape[1] > 1:
            drawn = torch.multinomial(F.softmax(scores.detach(), 1), 1, generator=generator)[:, 0]
            return F.cross_entropy(scores, drawn)
        noise = torch.randn(scores.shape, generator=generator)
        return (scores * noise).sum()

    def _gradient(self, loss: Tensor, create_graph: bool = False) -> dict[str, Tensor]:
        names = list(self.parameters)
        gradients = torch.autograd.grad(
            loss, [self.parameters[n] for n in names], create_graph=create_graph, allow_unused=True
        )
        return {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def _open_inputs(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def _running_means(model: ir.Model) -> set[str]:
    """Names of BatchNormalization's running means, which flow neither in nor out of a magnitude."""
    nodes = (n for n in model.graph if n.op_type == "BatchNormalization")
    return {str(n.inputs[3].name) for n in nodes if n.inputs[3] is not None}
