"""Axes: the term of every index of one dimension of one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from onnxprune.structure.terms import Ids


@dataclass(frozen=True, eq=False)
class Dynamic:
    """An axis of unknown extent, as a row-major product of factors.

    Attributes:
        factors: ``None`` for an unknown extent (never removed), ids for a static part, as in batch x heads.
    """

    factors: tuple[Ids | None, ...] = (None,)

    @property
    def static(self) -> tuple[Ids, ...]:
        """The factors of known extent."""
        return tuple(f for f in self.factors if f is not None)


Axis: TypeAlias = Ids | Dynamic


def parts(axis: Axis) -> tuple[Ids, ...]:
    """Return the id arrays that an axis is made of."""
    return axis.static if isinstance(axis, Dynamic) else (axis,)
