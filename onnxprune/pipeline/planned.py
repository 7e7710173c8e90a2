"""What goes in a step is decided once: a run that goes on reads what the interrupted one decided.

plan = planned_once(journal, "step 1: what goes", structure, decide)
division = divided_once(journal, "step 1: division", structure, divide)
share = share_once(journal, "step 1: share", find)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.model_io import all_initializers
from onnxprune.model_io.journal import Journal
from onnxprune.pipeline.plan import Plan
from onnxprune.selection.joint import Division
from onnxprune.selection.sensitivity import Sensitivity
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.structure import Structure


def planned_once(journal: Journal, key: str, structure: Structure, make: Callable[[], Plan | None]) -> Plan | None:
    """Return what goes: as it was decided before the run was interrupted, else as it is decided now.

    Args:
        journal: Of the run.
        key: Of the decision.
        structure: The analysis of the model.
        make: Decides; None for nothing.
    """
    if key in journal and (found := _read(journal, key, structure)) is not None:
        return found.plan
    plan = make()
    if journal.folder is not None and plan is None:
        journal.write(key, {}, {"units": _digest(structure), "nothing": True})
    elif journal.folder is not None and plan is not None:
        _write(journal, key, structure, plan)
    return plan


def divided_once(journal: Journal, key: str, structure: Structure, make: Callable[[], Division]) -> Division:
    """Return what goes of each granularity where several compete; see `planned_once`."""
    units = _digest(structure) if journal.folder is not None else ""
    if key in journal:
        _, notes = journal.read(key)
        if notes["units"] == units:
            left = {(str(name), str(kind), int(number)): int(n) for name, kind, number, n in notes["left"]}
            return Division(frozenset(notes["blocks"]), left, dict(notes["tiles"]))
    division = make()
    journal.write(key, {}, {
        "units": units, "blocks": sorted(division.blocks), "tiles": dict(division.tiles),
        "left": [[*group, int(n)] for group, n in division.units.items()],
    })  # fmt: skip
    return division


def share_once(journal: Journal, key: str, find: Callable[[], float]) -> float:
    """Return the sparsity that a step aims at; see `planned_once`."""
    if key in journal:
        return float(journal.read(key)[1]["share"])
    share = find()
    journal.write(key, {}, {"share": share})
    return share


@dataclass(frozen=True)
class _Found:
    """A decision that was kept; nothing went where its plan is None."""

    plan: Plan | None


def _write(journal: Journal, key: str, structure: Structure, plan: Plan) -> None:
    masks = {str(value.name): mask for value, mask in plan.masks.items()}
    arrays = {name: np.packbits(mask, axis=None) for name, mask in masks.items()}
    notes: dict[str, Any] = {
        "shapes": {name: list(mask.shape) for name, mask in masks.items()},
        "units": _digest(structure),
        "prunable": int(plan.prunable),
        "gone": int(plan.gone),
        "untouched": dict(plan.untouched),
        "blocks": [block.name for block in plan.blocks],
        "scan": None if plan.sensitivity is None else plan.sensitivity.as_notes(),
    }
    journal.write(key, {**arrays, "": np.packbits(plan.removed)}, notes)


def _read(journal: Journal, key: str, structure: Structure) -> _Found | None:
    """A decision that was kept; None where it names what this analysis does not have."""
    arrays, notes = journal.read(key)
    if notes["units"] != _digest(structure):
        return None
    if notes.get("nothing"):
        return _Found(None)
    values = {str(value.name): value for value in all_initializers(structure.model)}
    if not values.keys() >= notes["shapes"].keys():
        return None
    blocks = {block.name: block for block in residual_blocks(structure)} if notes["blocks"] else {}
    if not blocks.keys() >= set(notes["blocks"]):
        return None
    removed = np.unpackbits(arrays[""], count=structure.terms.count).astype(bool)
    shapes = {name: tuple(shape) for name, shape in notes["shapes"].items()}
    masks = BitMasks((values[name], _mask(arrays[name], shape)) for name, shape in shapes.items())
    scan = None if notes["scan"] is None else Sensitivity.from_notes(notes["scan"])
    chosen = tuple(blocks[name] for name in notes["blocks"])
    return _Found(Plan(structure, removed, masks, notes["prunable"], notes["gone"], notes["untouched"], scan, chosen))


def _mask(bits: Any, shape: tuple[int, ...]) -> Any:
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def _digest(structure: Structure) -> str:
    """What tells the units of an analysis from those of another."""
    digest = hashlib.sha256(str(structure.terms.count).encode())
    for group in structure.groups:
        digest.update(f"{group.name} {group.kind}".encode() + group.atoms.tobytes())
    return digest.hexdigest()
