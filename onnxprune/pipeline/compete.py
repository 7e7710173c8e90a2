"""``--structure joint`` and a budget: which way to the same target moves the outputs least?

The joint choice, and units, tiles and residual blocks alone, are each brought to the target and recovered on a part of
the calibration samples. The other part, which nothing was fitted to, says how far each is from the original. The one
that is nearest is made again, from all samples. Where the model is to be quantised, it competes with the same without
that as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import onnx_ir as ir

from onnxprune.data.calibration import Calibration
from onnxprune.errors import DataError, OnnxPruneError, VerificationError
from onnxprune.pipeline.result import Result
from onnxprune.recipe.granularity import JOINT, JOINT_PARTS, UNITS
from onnxprune.recipe.recipe import Recipe
from onnxprune.runtime.session import make_session, run
from onnxprune.runtime.stream.effects import Reference
from onnxprune.runtime.stream.gather import Batches

BUDGETS = ("target_latency", "target_macs", "target_size")
"""Targets at which results of all structures can be compared, since all save the same."""

JUDGED = 256
"""So many samples, and about a quarter at most, are held back."""

_JUDGED_EVERY = 4

NO_SAMPLES = (
    "--structure joint: without --calibration nothing tells what tiles and residual blocks lose, so whole units went "
    "alone (--calibration synthetic makes inputs up)"
)

Reached = Callable[[Recipe, Calibration], Result]
"""Runs a recipe to its target on some samples, without verification."""


@dataclass(frozen=True)
class Winner:
    """What came out of a competition: the recipe to follow, and what a person is told."""

    recipe: Recipe
    note: str


def compete(
    original: ir.Model, recipe: Recipe, samples: Calibration, reached: Reached, tell: Callable[[str], None] | None
) -> Winner:
    """Bring each structure to the target and return the recipe of the one that moves the outputs least.

    Args:
        original: The model.
        recipe: With ``--structure joint`` and a budget as its target.
        samples: The calibration samples.
        reached: Makes one candidate.
        tell: Called with the name of each candidate.

    Raises:
        VerificationError: None reaches the target.
    """
    fitted, judged = _divided(original, samples)
    judge = _Judge.of(original, judged)
    plain = recipe.model_copy(update={"require": (), "effort": "low"})
    changes, failed, said = dict[_Way, float](), dict[str, str](), list[str]()

    def enter(way: _Way) -> None:
        if tell is not None:
            tell(f"joint: {way}")
        try:
            result = reached(plain.model_copy(update=asdict(way)), fitted)
            change = judge.change(result)
        except OnnxPruneError as error:
            failed[str(way)] = str(error)
            return
        if way.structure == JOINT[0] and not result.blocks and not result.masks:
            way = replace(way, structure=UNITS)
            said.append(f"the joint choice takes nothing but units, so it is that of {way}")
        changes[way] = change

    def best() -> _Way:
        return min(changes, key=lambda way: changes[way])

    for structure in (JOINT[0], *JOINT_PARTS):
        if (way := _Way(structure, recipe.quantize)) not in changes:
            enter(way)
    if recipe.quantize != "no" and changes:
        enter(replace(best(), quantize="no"))
    if not changes:
        raise VerificationError(next(iter(failed.values())))
    listed = ", ".join(f"{change:.3g} ({way})" for way, change in changes.items())
    said += [f"{name} did not get there: {why}" for name, why in failed.items()]
    note = (
        f"--structure joint: at the same target the outputs of {judge.count} inputs that were held back change by "
        f"{'; '.join([listed, f'{best()} was kept', *said])}"
    )
    return Winner(recipe.model_copy(update=asdict(best())), note)


@dataclass(frozen=True)
class _Way:
    """What is compared: values of these settings."""

    structure: str
    quantize: str

    def __str__(self) -> str:
        return self.structure if self.quantize == "no" else f"{self.structure} in {self.quantize}"


def _divided(original: ir.Model, samples: Calibration) -> tuple[Calibration, Calibration]:
    """The samples to fit to and those to judge by; the same ones where there are too few to hold any back."""
    try:
        return samples.held_back(original, _JUDGED_EVERY, JUDGED)
    except DataError:
        return samples, samples


@dataclass(frozen=True)
class _Judge:
    """Says how far a result is from the original."""

    batches: Batches
    reference: Reference

    @staticmethod
    def of(original: ir.Model, samples: Calibration) -> _Judge:
        batches = Batches.of(original, samples.inputs)
        session = make_session(original)
        return _Judge(batches, Reference.of([run(session, feeds) for feeds in batches.feeds], batches.feeds[0]))

    @property
    def count(self) -> int:
        """How many samples it looks at."""
        return self.batches.count

    def change(self, result: Result) -> float:
        """The change of the outputs; infinite where they are no numbers."""
        narrow = result.recipe.interface == "narrow" and result.delivery is not None
        model = result.delivery.plain if narrow and result.delivery is not None else result.model
        session = make_session(model, error=VerificationError)
        outputs = [run(session, feeds, error=VerificationError) for feeds in self.batches.feeds]
        change = self.reference.divergence(outputs)
        return change if math.isfinite(change) else math.inf
