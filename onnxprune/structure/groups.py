"""Groups: families of atoms with the same sites, under the names that the field gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxprune.recipe.granularity import KINDS
from onnxprune.structure.terms import Ids

if TYPE_CHECKING:
    import onnx_ir as ir

KIND_BITS = {kind: 1 << i for i, kind in enumerate(KINDS)}


def kind_of(tags: int) -> str:
    """Return the name of a unit with these tag bits."""
    for kind, bit in KIND_BITS.items():
        if tags & bit:
            return kind
    return "units"


@dataclass(frozen=True)
class Site:
    """Where atoms of a group have their weights: one axis of one constant."""

    value: ir.Value
    axis: int


@dataclass(frozen=True, eq=False)
class Group:
    """Atoms that sit on the same axes of the same constants.

    Attributes:
        name: Named after its first site, for reports: ``weight[axis]``.
        kind: One of `KINDS`, or ``units``.
        atoms: Ids of the removable units, shape (n,).
        sites: All axes that lose indices when one of the atoms goes.
        inexact: Why removing a unit changes what is left, empty where removal is exact.
    """

    name: str
    kind: str
    atoms: Ids
    sites: tuple[Site, ...]
    inexact: str

    def __len__(self) -> int:
        return len(self.atoms)
