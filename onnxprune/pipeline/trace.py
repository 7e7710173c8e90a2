"""What the steps of a run did to the original so far. The record and the notes of the result are made from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.passes.remove_dead import compose_kept
from onnxprune.recipe.recipe import Recipe
from onnxprune.structure.rewrite import Kept
from onnxprune.verification.proof import Proof
from onnxprune.verification.reach import Reach

STARVED = 0.001
"""A layer that keeps a smaller share of its weights is told of."""

_LISTED = 8  # names that a note lists for one reason


@dataclass(frozen=True)
class Trace:
    """What the steps so far did.

    Attributes:
        kept: The kept indices of the original, by constant and axis.
        names: Copies of constants, with the names of their sources.
        gone: How many of the parameters that may go are zero or removed.
        dead: How many dead units were removed.
        left: Sentences on dead units that had to stay.
        untouched: Weights, or groups of units, that the pattern or the criterion did not fit, with the reason.
        difference: Largest difference between removed and masked, relative to the largest output.
        unproved: Why a comparison of removed and masked proved nothing; "" where all did.
        proof_notes: What a person should know of these comparisons.
        steps: Each step as plain data: what it aimed at and reached, what recovery and a scan found.
        blocks: The removed residual blocks, by the names of their sums.
        starved: Weights of which the last step left less than `STARVED`.
        reach: How far the proof of each cut reaches, as plain data.
    """

    kept: Kept = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    gone: int = 0
    dead: int = 0
    left: tuple[str, ...] = ()
    untouched: Mapping[str, str] = field(default_factory=dict)
    difference: float = 0.0
    unproved: str = ""
    proof_notes: tuple[str, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    blocks: tuple[str, ...] = ()
    starved: tuple[str, ...] = ()
    reach: tuple[Mapping[str, Any], ...] = ()

    def after_cut(self, kept: Kept, names: Mapping[str, str], proof: Proof | None, reach: Reach | None = None) -> Trace:
        """This trace after another removal.

        Args:
            kept: The indices that the removal kept, of the model before it.
            names: Copies of constants that it made, with the names of their sources.
            proof: Of removed == masked; None where nobody asked for one.
            reach: How far it reaches; None where that is not known.
        """
        proof = proof or Proof()
        notes = dict.fromkeys((*self.proof_notes, *([proof.note] if proof.note else [])))
        return replace(
            self,
            kept=compose_kept(self.kept, kept),
            names={**self.names, **names},
            difference=max(self.difference, proof.difference),
            unproved=self.unproved or proof.unproved,
            proof_notes=tuple(notes),
            reach=self.reach if reach is None else (*self.reach, asdict(reach)),
        )

    def plain(self) -> dict[str, Any]:
        """Return plain data for JSON, from which `of_plain` makes the trace again."""
        kept = {name: {str(axis): list(map(int, at)) for axis, at in axes.items()} for name, axes in self.kept.items()}
        return asdict(replace(self, kept={})) | {"kept": kept}

    @staticmethod
    def of_plain(plain: Mapping[str, Any]) -> Trace:
        """Return the trace that `plain` described."""
        kept = {
            name: {int(axis): np.asarray(at, np.int64) for axis, at in axes.items()}
            for name, axes in plain["kept"].items()
        }
        tuples = {
            name: tuple(plain.get(name, ())) for name in ("left", "steps", "blocks", "starved", "proof_notes", "reach")
        }
        return Trace(**{**plain, **tuples, "kept": kept})

    def notes(self, recipe: Recipe, sparsity: float) -> list[str]:
        """Return what a person should know, as sentences.

        Args:
            recipe: The recipe of the run.
            sparsity: The sparsity that was reached.
        """
        missed = shortfall(recipe, sparsity, untouched=bool(self.untouched))
        cut = (missed, self._untouched(recipe), *self.left, *self.proof_notes)
        return [note for note in (*cut, self._not_recovered(), self._starved()) if note]

    def _starved(self) -> str:
        if not self.starved:
            return ""
        names = first_of(self.starved)
        return f"less than {STARVED:.1%} of the weights are left of {names}: --allocation uniform or erk leaves more"

    def _untouched(self, recipe: Recipe) -> str:
        if not self.untouched:
            return ""
        listed = "; ".join(f"{first_of(names)}: {reason}" for reason, names in by_reason(self.untouched).items())
        return f"--structure {recipe.structure} and --criterion {recipe.criterion} left some as they were: {listed}"

    def _not_recovered(self) -> str:
        done = self.steps[-1].get("recovery") if self.steps else None
        if done is None or not (done["skipped"] or not done["steps"]):
            return ""
        if not done["skipped"]:
            return "recovery changed nothing: no Conv, Gemm or MatMul with float weights of its own comes after the cut"
        reasons = Counter(done["skipped"].values())
        listed = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        return f"recovery left {len(done['skipped'])} layers as they are: {listed}"


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names that share each reason, in order."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names


def first_of(names: Iterable[str]) -> str:
    """Return the first few names as a text; all of them are in the JSON and the record."""
    names = list(names)
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def shortfall(recipe: Recipe, sparsity: float, *, untouched: bool = False) -> str:
    """Say why the sparsity asked for is not reached; empty where it is.

    Args:
        recipe: The recipe.
        sparsity: The sparsity that was reached.
        untouched: Whether the pattern or the criterion did not fit everything, which is then the reason.
    """
    searched = recipe.target is not None  # nobody asked for this sparsity
    if recipe.quality is not None or searched or abs(sparsity - recipe.sparsity) <= 0.01:
        return ""
    asked = f"asked for {recipe.sparsity:.1%}, got {sparsity:.1%}"
    if untouched:
        return f"{asked}: what was left as it was makes up the rest, and the others give no more for it"
    if not recipe.parts.units:
        what = recipe.parts.shape.called
        return f"{asked}: the nearest below that whole {what} allow"
    return (
        f"{asked}: the nearest below that whole units, floors and rounding allow (--round-to none and --allow-inexact "
        "allow more)"
    )
