"""Prune, retrain, repeat: Han et al. 2015, with the variants that were tried since.

`iterate` knows neither how weights are chosen nor how dead units are removed: it is given a `prune` and a `clean`
function. After each iteration the state is on the disk, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxprune.data.readers import Data
from onnxprune.errors import ModelError, RecipeError
from onnxprune.recipe.schedules import sparsities
from onnxprune.recipe.training import IterateSettings, TrainSettings
from onnxprune.training import checkpoint as files
from onnxprune.training.gradual import Gradual, Prune, shapes
from onnxprune.training.layers import find_layers
from onnxprune.training.masks import Mask, Masks, apply_masks, sparsity
from onnxprune.training.progress import Progress
from onnxprune.training.reinit import reinitialise
from onnxprune.training.retrain import retrain
from onnxprune.training.shrink import Shrink
from onnxprune.training.task import EpochResult, Span, TrainResult

Choose = Callable[[ir.Model, float, int], Masks]
"""(model, sparsity to reach, iteration from 1) -> True for the numbers that `prune` would leave as they are."""

Kept = Mapping[str, Mapping[int, Sequence[int]]]
"""Initializer -> axis -> kept indices, for the axes that lost something (as in a record)."""

Clean = Callable[[ir.Model], tuple[ir.Model, Kept]]
"""Remove dead units: model -> (smaller model, what was kept)."""


@dataclass(frozen=True)
class IterationResult:
    """One iteration: what sparsity it aimed at and reached (of the masked weights), and its trainings."""

    iteration: int
    wanted: float
    sparsity: float
    trainings: tuple[TrainResult, ...]


@dataclass(frozen=True)
class IterateResult:
    """The final model, its masks, and every iteration.

    Attributes:
        diverged: The sentence for the user if a training's loss was no longer a number, else "". The model is then the
            best of that training, and no further iterations were run.
    """

    model: ir.Model
    masks: Masks
    history: tuple[IterationResult, ...]
    diverged: str = ""


@dataclass
class _State:
    """What one iteration hands to the next; this is what a checkpoint holds."""

    model: ir.Model
    masks: dict[str, Mask] = field(default_factory=dict)
    rewind: dict[str, np.ndarray] = field(default_factory=dict)
    history: list[IterationResult] = field(default_factory=list)


@dataclass(frozen=True)
class _Phase:
    """One training of an iteration.

    Attributes:
        prunes: Initializers that this phase prunes; None for all.
        frozen: Initializers that it does not train.
        number, count: Of all the trainings of the whole run, for the learning rate that spans them.
    """

    prunes: frozenset[str] | None
    frozen: frozenset[str]
    number: int
    count: int


def iterate(
    model: ir.Model,
    settings: IterateSettings,
    prune: Prune,
    data: Data,
    *,
    validation: Data | None = None,
    choose: Choose | None = None,
    clean: Clean | None = None,
    rewind_model: ir.Model | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> IterateResult:
    """Prune and retrain `settings.iterations` times; the model passed in stays as it is.

    Args:
        prune: Chooses and zeroes (or removes) weights; see `Prune`.
        data: Training data; labels may be missing (distillation from `model`).
        validation: Picks the best state of each training; a share of `data` by default.
        choose: Says what is going to go, for `settings.shrink`; the masks of `prune` by default.
        clean: Removes dead units after each training; masks and rewound weights follow.
        rewind_model: The weights that `rewind` goes back to, instead of the file `settings.rewind_to`.
        checkpoint: Folder for the state. If it holds that of a run with the same model and settings, the run goes on
            from there; what was lost is at most the epoch under way, or the iteration if it has several trainings.

    Raises:
        RecipeError: Settings that contradict each other or the checkpoint.
        DataError, ModelError: See `retrain`.
    """
    state = _State(model, rewind=_rewind_weights(settings, rewind_model))
    mark = fingerprint(model, settings)
    if checkpoint is not None:
        _load(checkpoint, mark, state)
    wanted = sparsities(settings.schedule, settings.iterations, settings.sparsity, settings.initial_sparsity)
    given = {"data": data, "validation": validation, "original": model, "progress": progress}
    turns = _Turns(settings, prune, choose or _masks_of(prune), wanted, state, mark, checkpoint, given)
    diverged = ""
    while not diverged and len(state.history) < settings.iterations:
        diverged = turns.one()
        if not diverged and clean is not None:
            _clean(state, clean)
        if not diverged and checkpoint is not None:
            _save(checkpoint, mark, state)
    return IterateResult(state.model, state.masks, tuple(state.history), diverged)


@dataclass
class _Turns:
    """The iterations of one run: what stays the same over them, and the state that each changes."""

    settings: IterateSettings
    prune: Prune
    choose: Choose
    wanted: Sequence[float]
    state: _State
    mark: str
    checkpoint: Path | None
    given: Mapping[str, Any]

    @property
    def iteration(self) -> int:
        """The one under way, from 1."""
        return len(self.state.history) + 1

    def one(self) -> str:
        """Do the next iteration; returns the sentence for the user if a loss was no longer a number, else ""."""
        wanted, trainings, diverged = self.wanted[self.iteration - 1], list[TrainResult](), ""
        for phase in _phases(self.state.model, self.settings, self.iteration):
            for stage in (self.train,) if self.settings.shrink == "no" else (self.shrink, self.train):
                if not diverged:
                    trainings.append(stage(phase, wanted))
                    diverged = trainings[-1].diverged
        reached = sparsity(self.state.masks)
        self.state.history.append(IterationResult(self.iteration, wanted, reached, tuple(trainings)))
        return diverged

    def shrink(self, phase: _Phase, wanted: float) -> TrainResult:
        """Drive what the pruning that follows will take towards zero."""
        stay = self.choose(self.state.model, wanted, self.iteration)
        stay = {name: mask for name, mask in stay.items() if phase.prunes is None or name in phase.prunes}
        shrink = Shrink(self.settings.shrink, self.settings.shrink_strength, stay)
        return self._retrain(phase, _shrink_settings(self.settings), self.state.model, " shrink", shrink=shrink)

    def train(self, phase: _Phase, wanted: float) -> TrainResult:
        """Prune and retrain, or prune while training."""
        state, gradual = self.state, _gradual(self.settings, self.prune)
        at_first = wanted if gradual is None else self.settings.initial_sparsity
        if at_first or gradual is None:
            _prune_phase(state, self.prune, at_first, self.iteration, phase)
        start = _start_weights(state, self.settings, self.iteration)
        train = _train_settings(self.settings, self.iteration)
        result = self._retrain(phase, train, start, "", span=_span(self.settings, phase), gradual=gradual)
        if gradual is not None and gradual.done:
            state.masks = gradual.masks
            state.model.metadata_props.update(gradual.notes)
        return result

    def _retrain(self, phase: _Phase, train: TrainSettings, start: ir.Model, what: str, **more: Any) -> TrainResult:
        done = retrain(
            start,
            settings=train,
            masks=self.state.masks,
            frozen=phase.frozen,
            checkpoint=self.checkpoint / "training.safetensors" if self.checkpoint is not None else None,
            tag=f"{self.mark} {phase.number}{what}",
            place=(self.iteration, self.settings.iterations),
            **self.given,
            **more,
        )
        self.state.model = done.model
        return done.result


def _train_settings(settings: IterateSettings, iteration: int) -> TrainSettings:
    return settings.last if settings.last is not None and iteration == settings.iterations else settings.train


def _shrink_settings(settings: IterateSettings) -> TrainSettings:
    """The training that shrinks: at a constant learning rate, to its end, whatever it costs on the validation data."""
    changes = {"epochs": settings.shrink_epochs, "steps": None, "schedule": "constant", "keep_best": False}
    return settings.train.model_copy(update={**changes, "patience": None})


def _masks_of(prune: Prune) -> Choose:
    return lambda model, sparsity, iteration: prune(model, sparsity, iteration)[1]


def _gradual(settings: IterateSettings, prune: Prune) -> Gradual | None:
    """The prunings during the training, where the settings ask for them."""
    if settings.prune_every is None:
        return None
    initial, final, every = settings.initial_sparsity, settings.sparsity, settings.prune_every
    return Gradual(prune, settings.schedule, initial, final, every, settings.ramp)


def _phases(model: ir.Model, settings: IterateSettings, iteration: int) -> list[_Phase]:
    """One training, or two where fully connected layers and convolutions take turns.

    Raises:
        RecipeError: They are to take turns, but the model has only one of the two.
    """
    if not settings.alternate:
        return [_Phase(None, frozenset(), iteration - 1, settings.iterations)]
    layers = find_layers(model)
    conv = frozenset(name for name, layer in layers.items() if layer.kind == "conv")
    rest = frozenset(layers) - conv
    if not conv or not any(layers[name].kind == "fc" for name in rest):
        raise RecipeError("alternate needs a model with both convolutions and fully connected layers.")
    count = 2 * settings.iterations
    return [_Phase(rest, conv, 2 * iteration - 2, count), _Phase(conv, rest, 2 * iteration - 1, count)]


def _span(settings: IterateSettings, phase: _Phase) -> Span:
    """`continue` runs one learning-rate schedule over all trainings; all other modes start it anew each time."""
    if settings.weights != "continue":
        return Span()
    return Span(phase.number / phase.count, (phase.number + 1) / phase.count)


def _prune_phase(state: _State, prune: Prune, wanted: float, iteration: int, phase: _Phase) -> None:
    """Prune, and let masks of initializers that this phase does not prune stay as they were.

    Raises:
        RecipeError: Only some layers are to be pruned, but `prune` changes the graph.
        ModelError: A mask does not fit its weight.
    """
    pruned, masks = prune(state.model, wanted, iteration)
    if phase.prunes is None:
        state.model, state.masks = apply_masks(pruned, masks), dict(masks)
        return
    before, after = shapes(state.model), shapes(pruned)
    if before != after:
        raise RecipeError("alternate zeroes weights; it does not go with a structure that removes units.")
    chosen = {name: mask for name, mask in masks.items() if name in phase.prunes}
    untouched = {name: state.masks.get(name, np.ones(mask.shape, bool)) for name, mask in masks.items()}
    state.masks = {**untouched, **chosen}
    state.model = apply_masks(state.model, state.masks)


def _start_weights(state: _State, settings: IterateSettings, iteration: int) -> ir.Model:
    """The weights that this iteration's training starts from."""
    if settings.weights == "reinit":
        return reinitialise(state.model, state.masks, settings.train.seed + iteration)
    if settings.weights != "rewind":
        return state.model
    rewound = state.model.clone()
    for name, array in state.rewind.items():
        value = rewound.graph.initializers.get(name)
        if value is None or value.const_value is None:
            continue
        if value.const_value.numpy().shape != array.shape:
            raise ModelError(f"'{name}' has shape {array.shape} in the checkpoint to rewind to, but "
                             f"{value.const_value.numpy().shape} in the model.")  # fmt: skip
        value.const_value = ir.tensor(array, dtype=value.dtype, name=name)
    return apply_masks(rewound, state.masks)


def _rewind_weights(settings: IterateSettings, rewind_model: ir.Model | None) -> dict[str, np.ndarray]:
    """The float initializers to go back to; empty unless the settings ask for it.

    Raises:
        RecipeError: There is nothing to go back to.
    """
    if settings.weights != "rewind":
        return {}
    if rewind_model is None and settings.rewind_to is None:
        raise RecipeError("weights 'rewind' needs a checkpoint to go back to: set rewind_to.")
    source = rewind_model
    if source is None:
        try:
            source = ir.load(str(settings.rewind_to))
        except Exception as error:
            raise ModelError(f"The checkpoint to rewind to, '{settings.rewind_to}', cannot be read: {error}") from error
    return {
        name: value.const_value.numpy()
        for name, value in source.graph.initializers.items()
        if value.const_value is not None and value.dtype is not None and value.dtype.is_floating_point()
    }


def _clean(state: _State, clean: Clean) -> None:
    """Remove dead units, and bring masks and rewound weights to the smaller shapes.

    Raises:
        ModelError: What `clean` says it kept is not what is in its model.
    """
    state.model, kept = clean(state.model)
    now = shapes(state.model)
    state.masks = {n: _cut(m, kept.get(n, {})) for n, m in state.masks.items() if n in now}
    state.rewind = {n: _cut(a, kept.get(n, {})) for n, a in state.rewind.items() if n in now}
    for name, mask in state.masks.items():
        if mask.shape != now[name]:
            raise ModelError(f"Removing dead units left '{name}' with shape {now[name]}; its mask is {mask.shape}.")


def _cut(array: np.ndarray, axes: Mapping[int, Sequence[int]]) -> np.ndarray:
    for axis, indices in axes.items():
        array = np.take(array, np.asarray(indices, dtype=np.int64), axis=int(axis))
    return array


# --- the state on the disk


def fingerprint(model: ir.Model, settings: IterateSettings) -> str:
    """A hash of what a checkpoint depends on: the settings and the model's weights."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(name.encode())
        if value.const_value is not None:
            digest.update(value.const_value.tobytes())
    return digest.hexdigest()[:16]


def _save(folder: Path, mark: str, state: _State) -> None:
    """Write the model, then the state that names it: whichever moment this is killed at, one of the two is whole."""
    if not _is_main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = f"iteration-{len(state.history)}.onnx"
    files.save_model(folder / name, state.model)
    tensors = {f"mask.{n}": torch.from_numpy(np.ascontiguousarray(m)) for n, m in state.masks.items()}
    tensors |= {f"rewind.{n}": torch.from_numpy(np.array(a)) for n, a in state.rewind.items()}
    history = [asdict(result) for result in state.history]
    state_of = {"mark": mark, "model": name, "history": history}
    files.save(folder / "state.safetensors", files.Checkpoint(tensors, state_of))
    for old in folder.glob("iteration-*.onnx*"):
        if not old.name.startswith(name):
            old.unlink(missing_ok=True)


def _is_main() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _load(folder: Path, mark: str, state: _State) -> None:
    saved = files.load(folder / "state.safetensors")
    if saved is None:
        return
    if saved.state["mark"] != mark:
        raise RecipeError(f"'{folder}' holds the checkpoint of a run with another model or other settings.")
    path = folder / saved.state["model"]
    try:
        state.model = ir.load(path)
    except Exception as error:
        raise ModelError(f"The checkpoint's model '{path}' cannot be read: {error}") from error
    parts = {"mask": {}, "rewind": {}}  # type: dict[str, dict[str, np.ndarray]]
    for name, tensor in saved.tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor.numpy()
    state.masks, state.rewind = parts["mask"], parts["rewind"]
    state.history = [_iteration_result(entry) for entry in saved.state["history"]]


def _iteration_result(entry: Mapping[str, object]) -> IterationResult:
    plain = json.loads(json.dumps(entry))
    trainings = tuple(
        TrainResult(**{**t, "history": tuple(EpochResult(**e) for e in t["history"])}) for t in plain["trainings"]
    )
    return IterationResult(plain["iteration"], plain["wanted"], plain["sparsity"], trainings)
