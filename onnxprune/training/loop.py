"""The training loop, on Hugging Face accelerate: one module, one device or many, deterministic for a seed on the CPU.

`train(task, settings)` trains `task.module` in place and says how it went. The order of a step is: a
pruning if one is due, forward, loss, backward, penalties, mask on gradients, clipping, decay, optimiser, shrinking,
mask on weights, average. After each epoch come the
metric on the validation data, the best state so far, and the checkpoint. `retrain.py` builds tasks from ONNX models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Tensor, nn

from onnxprune.errors import DataError, RecipeError
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from onnxprune.training.divergence import told
from onnxprune.training.evaluate import as_tuple, evaluate
from onnxprune.training.feed import Feed, Shard
from onnxprune.training.masks import BoundMasks, Masks, sparsity_of
from onnxprune.training.optim import MovingAverage, Regulariser, learning_rate, make_optimizer
from onnxprune.training.progress import Event, Progress, Ticker
from onnxprune.training.shrink import BoundShrink
from onnxprune.training.task import EpochResult, Span, Task, TrainResult

DEFAULT_EPOCHS = 3
EVALUATION_BATCH = 256
_RISEN = 1.2  # a mean loss of the last epoch so much above the first step's is told to the user


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """The accelerator for these settings; it finds by itself whether `accelerate launch` started several processes."""
    precision = {"fp32": "no"}.get(settings.precision, settings.precision)
    return Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision=precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def train(
    task: Task,
    settings: TrainSettings,
    *,
    span: Span | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    tag: str = "",
    place: tuple[int, int] = (1, 1),
) -> TrainResult:
    """Train `task.module` in place.

    Args:
        span: Where in a longer learning-rate schedule this training lies; all of it by default.
        checkpoint: File that holds the state after each epoch; if it is there already and bears `tag`, the training
            goes on from it and ends as if it had never been interrupted.
        place: (iteration, iterations), for the progress display.

    Raises:
        DataError: The data are empty, or the checkpoint is damaged.
        RecipeError: A mask fits no weight, or everything is frozen.
    """
    run = Run(task, settings, span or Span(), progress, place)
    if checkpoint is not None:
        run.restore(load_checkpoint(checkpoint), tag)
    if run.epoch == 0:
        run.measure()
    while not run.over:
        run.one_epoch()
        if checkpoint is not None and run.accelerator.is_main_process:
            save_checkpoint(checkpoint, run.state(tag))
    return run.finish()


class Run:
    """The state of one training: everything that a checkpoint has to hold, and what is made from the settings."""

    def __init__(
        self, task: Task, settings: TrainSettings, span: Span, progress: Progress | None, place: tuple[int, int]
    ) -> None:
        self.task, self.settings, self.span, self.progress, self.place = task, settings, span, progress, place
        self.accelerator = make_accelerator(settings)
        device = self.accelerator.device
        module = task.module.to(device)
        self.parameters = trained_parameters(module, task.frozen)
        self._mask(task.masks)
        self.shrink = BoundShrink(task.shrink, self.parameters, names_of(module)) if task.shrink else None
        self.optimizer = make_optimizer(settings, self.parameters.values())
        self.regulariser = Regulariser(settings, self.parameters.values())
        self.average = MovingAverage(settings.ema, self.parameters.values()) if settings.ema else None
        self.module = self.accelerator.prepare_model(module)
        self.prepared = self.accelerator.prepare_optimizer(self.optimizer)
        self.original = task.original.to(device).eval() if task.original is not None else None
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.feed = Feed(task.source, settings.batch_size, device, rank, world)
        check, size = task.validation, task.fixed_batch or max(settings.batch_size, EVALUATION_BATCH)
        self.validation = Feed(check, size, device, rank, world) if check is not None else None
        self.epoch_steps = 0 if settings.steps and task.source.count is None else self.feed.steps()
        self.steps = settings.steps or self.epoch_steps * (settings.epochs or DEFAULT_EPOCHS)
        self.epoch, self.step = 0, 0
        self.history: list[EpochResult] = []
        self.start: float | None = None
        self.best: float | None = None
        self.best_epoch = 0
        self.kept: dict[str, Tensor] = {}
        self.stopped, self.diverged = "", ""
        self.first_loss: float | None = None
        self.ticker = Ticker()
        if task.gradual is not None:
            task.gradual.plan(self.steps)

    @property
    def bare(self) -> nn.Module:
        """The module itself, out of its data-parallel wrapper."""
        return self.task.module

    @property
    def over(self) -> bool:
        """True when nothing is left to do."""
        return self.step >= self.steps or bool(self.stopped or self.diverged)

    def _mask(self, masks: Masks) -> None:
        """Hold these masks from now on."""
        self.masks = BoundMasks(self.bare, names_of(self.bare), masks)
        self.masks.zero()
        self.sparsity = sparsity_of(masks)

    # --- one epoch

    def one_epoch(self) -> None:
        """Train on all batches once (or on as many as steps are left), then measure."""
        set_seed(self.settings.seed * 1_000_003 + self.epoch)  # dropout; the data's order has its own generator
        self.module.train()
        if self.settings.batch_norm == "freeze":
            freeze_statistics(self.bare)
        total, samples, waiting = 0.0, 0, []
        for shard in self.feed.epoch(self.settings.seed, self.epoch):
            waiting.append((self.one_step(shard), shard.count))
            if len(waiting) >= self._patience():
                total, samples = self._account(waiting, total, samples)
            if self.diverged or self.step >= self.steps:
                break
        total, samples = self._account(waiting, total, samples)
        if samples == 0 and not self.diverged:
            raise DataError("The data set is empty: an epoch gave no batch.")
        self.epoch += 1
        if not self.diverged:
            self.measure(total / samples)

    def one_step(self, shard: Shard) -> Tensor:
        """One optimiser step; returns the (not yet awaited) loss of this process's samples."""
        if self.task.gradual is not None and self.task.gradual.due(self.step):
            self._prune_more()
        rate, batch = self._learning_rate(), self.task.variation(shard, self.step, self.feed.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.accelerator.autocast():
            outputs = as_tuple(self.module(*batch.inputs))
            with torch.no_grad():
                original = as_tuple(self.original(*batch.inputs)) if self.original and self._compares() else ()
            loss = batch.loss(self.task.loss, outputs, original)
        self.accelerator.backward(loss * shard.weight if self.feed.world > 1 else loss)
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.prepared)
        self.regulariser.gradients()
        self.masks.gradients()
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        self.regulariser.weights_decay(rate)
        self.prepared.step()
        self.prepared.zero_grad()
        if self.shrink is not None:
            self.shrink.step(rate, (self.step + 1) / self.steps)
        self.masks.weights()
        if self.average is not None:
            self.average.update()
        self.step += 1
        return loss.detach() * shard.weight

    def _prune_more(self) -> None:
        """The next pruning of a gradual one. States from before are less sparse, so none of them is the best now."""
        assert self.task.gradual is not None and self.task.export is not None
        self._mask(self.task.gradual.next(self.task.export()))
        if self.average is not None:
            self.average.swap()
            self.masks.zero()
            self.average.swap()
        self.best, self.best_epoch = None, self.epoch
        self.kept = {name: t.detach().clone() for name, t in self.bare.state_dict().items()}

    def _compares(self) -> bool:
        return self.task.loss.needs_original

    def _learning_rate(self) -> float:
        """The rate of the coming step, within the longer schedule that this training may be a part of."""
        whole = self.steps / (self.span.end - self.span.start)
        return learning_rate(self.settings, round(self.span.start * whole) + self.step, round(whole))

    def _patience(self) -> int:
        """Losses to gather before looking at them: looking makes an accelerator wait, but costs a CPU nothing."""
        return 1 if self.accelerator.device.type == "cpu" else 16

    def _account(self, waiting: list[tuple[Tensor, int]], total: float, samples: int) -> tuple[float, int]:
        """Look at the gathered losses: add them up, or stop at the first that is no number."""
        if not waiting:
            return total, samples
        losses = torch.stack([loss.float() for loss, _ in waiting])
        if self.feed.world > 1:
            torch.distributed.all_reduce(losses)
            losses /= self.feed.world
        values = losses.tolist()
        first = self.step - len(values) + 1
        self.first_loss = values[0] if self.first_loss is None else self.first_loss
        for offset, (value, (_, count)) in enumerate(zip(values, waiting, strict=True)):
            if not math.isfinite(value):
                self._diverge(first + offset, value)
                break
            total, samples = total + value * count, samples + count
        waiting.clear()
        self._tell(total / samples if samples else float("nan"))
        return total, samples

    def _diverge(self, step: int, value: float) -> None:
        kept = f"the best, of epoch {self.best_epoch}" if self.best_epoch else "the weights from before the training"
        if self.best is None and self.task.gradual is not None and self.task.gradual.done:
            kept = "the weights as the last pruning left them"
        figure = "" if self.best is None else f" ({self.task.metric.name} {self.best:.4f})"
        names = names_of(self.bare)
        before = {names.get(name, name): tensor for name, tensor in self.kept.items()}
        self.diverged = told(value, step, self.steps, f"{kept}{figure}", before)

    def _tell(self, loss: float, force: bool = False) -> None:
        if self.progress is None or not self.accelerator.is_main_process or not (self.ticker.due() or force):
            return
        latest = self.history[-1].metric if self.history else self.start
        left = self.ticker.left(self.step, self.steps)
        self.progress(
            Event(*self.place, self.step, self.steps, loss, self.task.metric.name, latest, self.sparsity, left)
        )

    # --- the best state

    def measure(self, loss: float | None = None) -> None:
        """Measure the module on the validation data, keep it if it is the best, and stop if patience is over.

        Args:
            loss: Mean loss of the epoch that ended; None before the first.
        """
        if self.average is not None:
            self.average.swap()
        value = self._metric()
        if loss is None:
            self.start = value
        else:
            self.history.append(EpochResult(self.epoch, self.step, loss, value))
            self._tell(loss, force=True)
        metric = self.task.metric
        better = value is None or metric.better(value, self.best)
        self.best, self.best_epoch = (value, self.epoch) if better else (self.best, self.best_epoch)
        if better or self.best is None:  # where a metric is no number, nothing tells states apart: the last one stays
            self.kept = {name: t.detach().clone() for name, t in self.bare.state_dict().items()}
        if self.average is not None:
            self.average.swap()
        patience = self.settings.patience
        if value is not None and patience is not None and self.epoch - self.best_epoch >= patience:
            self.stopped = f"no better {metric.name} in {patience} epochs"

    def _metric(self) -> float | None:
        if self.validation is None:
            return None
        return evaluate(
            self.bare, self.validation, self.task.heads, self.task.metric, self.task.target_outputs, self.original
        )

    def finish(self) -> TrainResult:
        """Leave the module with the state that is kept, its pruned weights exactly zero, in eval mode."""
        best, best_epoch = self.best, self.best_epoch
        if self.diverged or self.settings.keep_best or self.validation is None:
            self.bare.load_state_dict(self.kept)
        else:
            if self.average is not None:
                self.average.swap()
            best, best_epoch = (self.history[-1].metric if self.history else self.start), self.epoch
        self.masks.zero()
        self.bare.eval()
        name, history = self.task.metric.name, tuple(self.history)
        return TrainResult(name, self.start, best, best_epoch, history, self.stopped, self.diverged, self._worse())

    def _worse(self) -> str:
        """The sentence for a distillation whose loss rose from its start."""
        first, last = self.first_loss, self.history[-1].loss if self.history else None
        if not self._compares() or first is None or last is None or last <= _RISEN * first:
            return ""
        return (
            f"the distance from the original's outputs rose from {first:.3g} to {last:.3g}: a lower learning rate "
            "(--lr) may help, or --recover align, which finds its own"
        )

    # --- checkpoints

    def state(self, tag: str) -> Checkpoint:
        """Everything that the rest of the training depends on."""
        tensors = {f"module.{name}": t for name, t in self.bare.state_dict().items()}
        tensors |= {f"kept.{name}": t for name, t in self.kept.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
        if self.average is not None:
            tensors |= {f"average.{i}": t for i, t in enumerate(self.average.average)}
        gradual = self.task.gradual
        if gradual is not None:
            tensors |= {f"mask.{name}": torch.from_numpy(np.ascontiguousarray(m)) for name, m in gradual.masks.items()}
        state = {
            "tag": tag,
            "gradual": None if gradual is None else gradual.state(),
            "epoch": self.epoch,
            "step": self.step,
            "start": self.start,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "first_loss": self.first_loss,
            "diverged": self.diverged,
            "history": [asdict(result) for result in self.history],
        }
        return Checkpoint(tensors, state)

    def restore(self, saved: Checkpoint | None, tag: str) -> None:
        """Go on from a checkpoint, if there is one and it is of this training."""
        if saved is None or saved.state["tag"] != tag:
            return
        parts = group(saved.tensors)
        self.bare.load_state_dict(parts["module"])
        self.kept = {name: t.to(self.accelerator.device) for name, t in parts["kept"].items()}
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts.get("optimizer", {}).items():
            number, key = name.split(".", 1)
            values.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": values})
        if self.average is not None:
            for i, average in enumerate(self.average.average):
                average.copy_(parts["average"][str(i)])
        if self.task.gradual is not None and saved.state["gradual"]["done"]:
            masks = {name: t.numpy() for name, t in parts.get("mask", {}).items()}
            self.task.gradual.restore(masks, saved.state["gradual"])
            self._mask(masks)
        for key in ("epoch", "step", "start", "best", "best_epoch", "stopped", "diverged", "first_loss"):
            setattr(self, key, saved.state[key])
        self.history = [EpochResult(**result) for result in saved.state["history"]]


def group(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{"a.b.c": t} as {"a": {"b.c": t}}."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, rest = name.split(".", 1)
        parts.setdefault(first, {})[rest] = tensor
    return parts


def names_of(module: nn.Module) -> dict[str, str]:
    """Parameter name -> initializer name; the parameter's own name for a module that is not made by the bridge."""
    names: Any = getattr(module, "onnx_names", None)
    return dict(names) if names is not None else {name: name for name, _ in module.named_parameters()}


def freeze_statistics(module: nn.Module) -> None:
    """Keep BatchNorm statistics as they are while the module is in training mode.

    Raises:
        RecipeError: The module does not offer it.
    """
    freeze: Any = getattr(module, "freeze_statistics", None)
    if freeze is None:
        raise RecipeError("BatchNorm statistics can be frozen only in modules made by the bridge.")
    freeze()


def trained_parameters(module: nn.Module, frozen: frozenset[str]) -> dict[str, nn.Parameter]:
    """The parameters that are trained; the others stop needing gradients.

    Raises:
        RecipeError: None is left.
    """
    names = names_of(module)
    for name, parameter in module.named_parameters():
        if names.get(name, name) in frozen:
            parameter.requires_grad_(False)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise RecipeError("Nothing is left to train: every weight is frozen.")
    return trained
