"""``--calibration synthetic``: inputs made up from the model, where nobody has any of its own.

calibration = made_up(model, limit=1024, seed=0)
calibration.inputs, calibration.made_up
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from onnxprune.data.batches import Samples
from onnxprune.data.calibration import Calibration, read_calibration
from onnxprune.data.readers import AnyData
from onnxprune.errors import ModelError
from onnxprune.graph.size import figures
from onnxprune.passes import Normalise
from onnxprune.recipe.fields import is_synthetic
from onnxprune.recipe.recipe import Recipe
from onnxprune.runtime.probe import concrete_shapes
from onnxprune.synthetic.draw import Drawn, Setting, can_be_improved, draw, setting_of

MOST, LEAST = 512, 64
"""Samples that are drawn: fewer of a large model."""

_WORK = 1e12  # multiply-adds of all forward runs that the gradient steps may take
_STEPS = (8, 50)  # of each sample: not worth it below, nothing gained above; large models have fewer samples for it


NOTE = (
    "the calibration inputs were made up ({how}), which is second best: some tens of real ones, without labels, "
    "leave a better model"
)


def calibration_of(
    model: ir.Model, data: AnyData, recipe: Recipe, tell: Callable[[str], None] | None = None
) -> Calibration:
    """Read the calibration data of a run, or make them up.

    Args:
        model: The model.
        data: What was given, see `read_calibration`; or ``synthetic``.
        recipe: Its number of samples, its seed and how data are read.
        tell: Called with what goes on.

    Raises:
        DataError: The data cannot be read or do not fit; or no inputs are found that the model runs with.
    """
    limit, seed = recipe.calibration_samples, recipe.seed
    if is_synthetic(data):
        return made_up(model, limit, seed, tell)
    return read_calibration(data, model, limit, seed, recipe.reading)


def made_up(
    model: ir.Model, limit: int, seed: int, tell: Callable[[str], None] | None = None, *, gradients: bool = True
) -> Calibration:
    """Make up inputs for a model; `Calibration.made_up` says how.

    Args:
        model: The model.
        limit: So many samples at most.
        seed: Of all that is drawn.
        tell: Called with what goes on.
        gradients: Whether they may be improved by gradient steps, where PyTorch is installed.

    Raises:
        DataError: No inputs are found that the model runs with.
    """
    model = model.clone()
    Normalise()(model)
    setting = setting_of(model, seed)
    steps = _affordable(model, setting, seed) if gradients and can_be_improved(model) else 0
    count = min(limit, MOST, max(LEAST, steps // _STEPS[1]) if steps else MOST)
    drawn = draw(model, setting, count, seed)
    plain = Calibration(drawn.samples, made_up=_kind(drawn))
    updates = min(_STEPS[1], steps // max(1, drawn.samples.count))
    if updates < _STEPS[0]:
        return plain
    if importlib.util.find_spec("torch") is None:
        return replace(plain, made_up=f"{plain.made_up}; with PyTorch they would be better")
    return _matched(model, drawn, plain, updates, seed, tell or (lambda _: None))


def _matched(
    model: ir.Model, drawn: Drawn, plain: Calibration, updates: int, seed: int, tell: Callable[[str], None]
) -> Calibration:
    """The drawn inputs, fitted to what the model tells of its training data."""
    from onnxprune.synthetic.match import GENTLE_STEPS, match, view_of

    try:
        view = view_of(model, drawn)
        if not view.tells:
            return plain
        updates = min(updates, GENTLE_STEPS) if view.gentle else updates
        better = match(view, drawn, updates, seed, tell)
    except ModelError:  # the bridge does not know one of its operators, or no gradient comes through
        return plain
    samples = Samples({**drawn.samples.arrays, **better}, drawn.samples.axes)
    return Calibration(samples, made_up=f"{plain.made_up}, fitted to {view.tells} in {updates} gradient steps")


def _kind(drawn: Drawn) -> str:
    """What was drawn, in words."""
    fields = drawn.fields.values()
    if any(field.picture for field in fields):
        return "pictures of random shapes"
    return "noise with the spectrum of natural signals" if any(f.spectrum is not None for f in fields) else "random"


def _affordable(model: ir.Model, setting: Setting, seed: int) -> int:
    """How many gradient steps of one sample are worth their time: a number of the model, not of the machine."""
    feeds = setting.feeds(model, seed)
    macs = figures(model, concrete_shapes(model, feeds)).macs or 1
    return int(_WORK / max(macs, 1))
