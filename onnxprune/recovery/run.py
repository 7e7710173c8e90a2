"""Recovery without labels or training: one method after another brings a pruned model towards the dense one.

recovered = recover(dense, pruned, kept, {"images": array})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxprune.data.batches import Inputs, held_back
from onnxprune.errors import DataError
from onnxprune.graph.branches import take_numbers, taken_branch, with_branch_inlined
from onnxprune.graph.hints import Feeds
from onnxprune.graph.spelled_experts import put_back_experts, with_experts_spelled
from onnxprune.graph.tensors import numbers_of, put_back
from onnxprune.recipe.fields import Effort
from onnxprune.recipe.granularity import Shape
from onnxprune.recovery.reconstruct import State, Step, recover_layers
from onnxprune.recovery.registry import METHODS
from onnxprune.recovery.resumed import Known
from onnxprune.recovery.streamed import FOLDS, HELD_EVERY, is_held
from onnxprune.runtime.stream.gather import Batches
from onnxprune.structure.rewrite import Kept

_REPORTED = 64  # inputs on which the outputs are compared for the report; least squares of units does not see them


@dataclass(frozen=True)
class Recovery:
    """What was done to a model.

    Attributes:
        steps: In the order in which they were tried.
        skipped: Contractions that were left as they are, with the reason.
        before, after: Relative squared error of the model's outputs on the calibration inputs; None without any.
        samples: How many inputs were used.
    """

    steps: tuple[Step, ...]
    skipped: Mapping[str, str]
    before: float | None
    after: float | None
    samples: int


def recover(
    dense: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    inputs: Inputs,
    *,
    methods: Sequence[str] = ("least-squares",),
    pattern: Shape | None = None,
    trained: bool = False,
    effort: Effort = "low",
    seed: int = 0,
    batch: int = 64,
    windows: int = 256,
    known: Known | None = None,
    progress: Callable[[str], None] | None = None,
) -> Recovery:
    """Bring a pruned model's outputs back towards the dense model's, in place.

    Args:
        dense: The model before pruning, normalised. It stays as it is.
        pruned: The model after; removed units are gone, and there are as many zeros afterwards as before.
        kept: The kept indices of cut constants, by name and axis, as `RemoveUnits` tells them.
        inputs: Unlabelled samples by input name; may be empty for methods that need none.
        methods: Names of `METHODS` or `module:function`, each run over the whole network in this order.
        pattern: What zeros keep to where a method chooses them anew.
        trained: Whether the pruned model was trained: fits are then drawn to its weights, else to the dense model's.
        effort: How many steps methods by gradients take.
        seed: Of what they draw at random.
        batch: Batches run at once.
        windows: Largest number of places of one feature map that statistics are taken from.
        known: What the same recovery had found when it was interrupted; what this one finds is kept there.
        progress: Called with the name of each layer.

    Raises:
        RecipeError: There is no such method.
        DataError: The inputs do not fit, or are too few to hold any back: fewer than two batches, or three where a
            method such as `align` judges by inputs that no fit has seen.
    """
    branch = taken_branch(dense, inputs)
    if branch is not None:  # of a merged decoder: the layers between are those of the branch that the samples take
        aim, inlined = (with_branch_inlined(model, branch) for model in (dense, pruned))
        done = recover(aim, inlined, kept, inputs, methods=methods, pattern=pattern, trained=trained, effort=effort,
                       seed=seed, batch=batch, windows=windows, known=known, progress=progress)  # fmt: skip
        take_numbers(pruned, inlined, branch)
        return done
    one, two = with_experts_spelled(dense), with_experts_spelled(pruned)
    if one is not None and two is not None:  # of mixtures in one operator, the products are layers like others
        done = recover(one, two, kept, inputs, methods=methods, pattern=pattern, trained=trained, effort=effort,
                       seed=seed, batch=batch, windows=windows, known=known, progress=progress)  # fmt: skip
        put_back_experts(pruned, two)
        return done
    chosen = {name: METHODS.find(name) for name in methods}
    measured = bool(inputs) or any(m.needs == "calibration" for m in chosen.values())
    samples = Batches.of(dense, inputs, batch, least=2 * FOLDS) if measured else Batches((), (), 0)
    feeds = samples.feeds
    if measured and len(feeds) < 2:
        raise DataError("recovery needs at least two batches of calibration inputs, one of them to hold back.")
    run = State(dense, pruned, kept, samples, windows, pattern, progress or (lambda _: None), trained,
                inputs, effort=effort, seed=seed, known=known or Known())  # fmt: skip
    return _recovered(run, methods, {name for name, m in chosen.items() if m.holds_back}, batch)


def _recovered(run: State, methods: Sequence[str], demanding: set[str], batch: int) -> Recovery:
    """Run the methods, and measure before and after where there are inputs."""
    feeds, samples = run.samples.feeds, run.samples
    unseen = [feed for number, feed in enumerate(feeds) if is_held(number, len(feeds))]
    some = unseen[: max(1, _REPORTED * len(feeds) // max(1, samples.count))]
    before = _measured_once(run, some) if feeds else None
    if demanding:
        _with_some_held_back(run, methods, demanding, batch)
    else:
        _one_after_another(run, methods)
    after = run.error(some) if feeds and run.steps else before
    return Recovery(tuple(run.steps), run.skipped, before, after, samples.count)


def _measured_once(run: State, feeds: Sequence[Feeds]) -> float:
    key = f"{run.known.name}, error before"
    error = run.known.number(key)
    if error is None:
        error = run.error(feeds)
        run.known.save_number(key, error)
    return error


def _one_after_another(run: State, methods: Sequence[str]) -> None:
    for name in methods:
        (METHODS.find(name).run or recover_layers)(run, name)


def _with_some_held_back(run: State, methods: Sequence[str], demanding: set[str], batch: int) -> None:
    """Run methods on a part of the inputs, so that the others have not been seen by any fit.

    A fit lowers the error on the inputs that it saw far more than on others. What is trained after it would be judged
    against that, and good states refused. Where nothing that was judged by the others is kept, they were held back for
    nothing: the remaining methods then run anew on all inputs.
    """
    start = numbers_of(run.pruned)
    used, held = held_back(run.dense, run.inputs, HELD_EVERY)
    part = replace(run, samples=Batches.of(run.dense, used, batch, least=2 * FOLDS), inputs=used, held=held,
                   steps=[], anchors=dict(run.anchors))  # fmt: skip
    _one_after_another(part, methods)
    if any(step.applied and step.method in demanding for step in part.steps):
        run.steps += part.steps
        return
    put_back(run.pruned, start)
    _one_after_another(run, [name for name in methods if name not in demanding] or ["least-squares"])
    run.steps += [step for step in part.steps if step.method in demanding]
