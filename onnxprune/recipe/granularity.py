"""What ``--structure`` says: the shape in which weights go; `STRUCTURES` lists how it is written.

Data alone: how each is chosen is in `choosing.py` and `selection/`, the order of the two of a mix in `steps.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxprune.errors import RecipeError

UNITS, WEIGHTS, DEPTH = "channels", "weights", "blocks"
DEFAULT_UNIT_SHARE = 0.5
STRUCTURES = {
    "weights": "single weights become zero, anywhere",
    "N:M": "at most N of every M consecutive weights along the reduction axis stay (2:4, 1:4); it sets the sparsity",
    "block:RxC": "blocks of R outputs by C inputs become zero as one (block:1x4, block:4x1)",
    "channels": "whole units are removed: channels, neurons, heads, ... (--kinds), and the graph gets smaller",
    "blocks": "whole residual blocks are removed, by depth: y = x + f(x) becomes y = x",
    "channels+weights": "a mix: --unit-share of the sparsity by whole units, the rest by single weights (or a pattern: "
    "channels+2:4, channels+block:1x4)",
}
"""How values of ``--structure`` are written, for lists of them."""


@dataclass(frozen=True)
class Weights:
    """Single weights go, each by itself."""


@dataclass(frozen=True)
class NM:
    """At most ``n`` of every ``m`` weights along the reduction axis stay."""

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        """The share that goes, of every layer that the pattern fits."""
        return 1 - self.n / self.m


@dataclass(frozen=True)
class Block:
    """Blocks of ``rows`` outputs by ``columns`` inputs stay or go as one; at the ends of an axis they are smaller."""

    rows: int
    columns: int


Zeros = Weights | NM | Block


@dataclass(frozen=True)
class Units:
    """Whole units go."""


@dataclass(frozen=True)
class Depth:
    """Whole residual blocks go."""


@dataclass(frozen=True)
class Parts:
    """A structure, read.

    Attributes:
        text: As it is written.
        units: Whether whole units go.
        zeros: What becomes zero (after units went, where both do); None where nothing does.
        depth: Whether whole residual blocks go.
    """

    text: str
    units: bool
    zeros: Zeros | None
    depth: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The parts by themselves, in the order in which they are done."""
        return tuple(self.text.split("+"))

    @property
    def kind(self) -> Units | Depth | Zeros:
        """What goes first: all there is to a structure that is no mix."""
        if self.units:
            return Units()
        return Depth() if self.zeros is None else self.zeros

    @property
    def gone(self) -> str:
        """What weights are that went."""
        return "zero or removed" if self.mixed else "removed" if self.removes else "zero"

    @property
    def removes(self) -> bool:
        """Whether the graph gets smaller."""
        return self.units or self.depth

    @property
    def mixed(self) -> bool:
        """Whether units go and weights become zero."""
        return self.units and self.zeros is not None


def parse_structure(text: str) -> Parts:
    """Read the value of ``--structure``.

    Raises:
        RecipeError: It is none.
    """
    first, plus, second = text.partition("+")
    if text == UNITS:
        return Parts(text, True, None)
    if text == DEPTH:
        return Parts(text, False, None, depth=True)
    if plus and first != UNITS:
        raise RecipeError(f"a mixed structure starts with whole units, such as channels+weights, not {text!r}")
    zeros = second if plus else text
    if zeros == WEIGHTS:
        return Parts(text, bool(plus), Weights())
    try:
        return Parts(text, bool(plus), parse_pattern(zeros))
    except RecipeError:
        raise RecipeError(
            f"there is no structure {text!r}: choose weights, channels, blocks, N:M such as 2:4, block:RxC such as "
            "block:1x4, or a mix such as channels+weights"
        ) from None


def parse_pattern(text: str) -> NM | Block:
    """Read ``2:4`` or ``block:1x4``.

    Raises:
        RecipeError: It is neither.
    """
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = int(found[1]), int(found[2])
        if 0 < n < m:
            return NM(n, m)
    elif found := re.fullmatch(r"block:(\d+)x(\d+)", text):
        rows, columns = int(found[1]), int(found[2])
        if rows > 0 and columns > 0:
            return Block(rows, columns)
    raise RecipeError(
        f"{text!r} is no pattern: write N:M with 0 < N < M, such as 2:4, or block:RxC, such as block:1x4."
    )
