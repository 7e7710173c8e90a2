"""What ``--structure`` says: the shape in which weights go, and a registry of all shapes.

A shape is a frozen dataclass: what a value of ``--structure`` says, read from its text. How it is chosen is registered
for its class with `onnxprune.pipeline.choose.chooser`; both may stand in one module of another package (entry point
group ``onnxprune.structures``). A mix such as ``channels+2:4`` is two shapes, done one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from onnxprune.errors import RecipeError
from onnxprune.plugins import Plugins, Registry

if TYPE_CHECKING:
    from typing_extensions import Self

UNITS, WEIGHTS = "channels", "weights"
DEFAULT_UNIT_SHARE = 0.5

KINDS = ("heads", "head-size", "experts", "hidden", "channels", "neurons")
"""What a unit can be, the most telling name first: an atom that is both a head and a neuron is a head."""

KV_GROUPS, QUERY_HEADS = SHARING = ("kv-groups", "query-heads")
"""What heads are where several heads of queries share one of keys and values: all that share one, or one of these."""

IN_WORDS = {KV_GROUPS: "KV groups", QUERY_HEADS: "query heads per group", "head-size": "head size"}
"""What users call the kinds whose name in ``--kinds`` is another one."""


def read_kind(text: str) -> str:
    """Return the kind of unit that a text names.

    Raises:
        RecipeError: There is none.

    >>> read_kind("KV groups")
    'kv-groups'
    """
    kind = {words.lower(): kind for kind, words in IN_WORDS.items()}.get(text.lower(), text.lower().replace(" ", "-"))
    if kind == "layers":
        raise RecipeError("whole layers go with --structure layers, not with --kinds")
    if kind not in (*KINDS, *SHARING):
        raise RecipeError(f"there are no units called {text!r}; choose from {', '.join((*KINDS, *SHARING))}")
    return kind


@dataclass(frozen=True)
class Shape:
    """What goes as one: the base of all shapes.

    Attributes:
        removes: Whether the graph gets smaller; else weights become zero.
        scored: What a criterion has to score: one of `Criterion.scores`.
        called: What goes, in words.
        ranks: Whether an allocation divides the sparsity among layers or groups.
        rewritten: Whether layers are rewritten at the end so that zeros cost no time.
    """

    removes: ClassVar[bool] = False
    scored: ClassVar[Literal["weights", "units", "blocks"]] = "weights"
    called: ClassVar[str] = "blocks"
    ranks: ClassVar[bool] = True
    rewritten: ClassVar[bool] = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a value of ``--structure``; None where it is not of this shape."""
        raise NotImplementedError

    @property
    def sets(self) -> float | None:
        """The share of the weights that the shape zeroes by itself, so that no sparsity is asked for; None for any."""
        return None

    @property
    def multiple(self) -> int:
        """What extents of the reduction axis have to be a multiple of."""
        return 1


@dataclass(frozen=True)
class Weights(Shape):
    """Single weights go, each by itself."""

    called: ClassVar[str] = "weights"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        return cls() if text == WEIGHTS else None


@dataclass(frozen=True)
class NM(Shape):
    """At most ``n`` of every ``m`` weights along the reduction axis stay."""

    n: int
    m: int
    ranks: ClassVar[bool] = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        match = re.fullmatch(r"(\d+):(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match and 0 < int(match[1]) < int(match[2]) else None

    @property
    def sparsity(self) -> float:
        """The share that goes, of every layer that the pattern fits."""
        return 1 - self.n / self.m

    @property
    def sets(self) -> float | None:
        return self.sparsity

    @property
    def multiple(self) -> int:
        return self.m


@dataclass(frozen=True)
class Block(Shape):
    """Blocks of ``rows`` outputs by ``columns`` inputs stay or go as one; at the ends of an axis they are smaller."""

    rows: int
    columns: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        match = re.fullmatch(r"block:(\d+)x(\d+)", text)
        return cls(int(match[1]), int(match[2])) if match and int(match[1]) > 0 and int(match[2]) > 0 else None


@dataclass(frozen=True)
class Tiles(Shape):
    """The outputs of a layer are divided into at most ``count`` tiles; each tile reads inputs of its own."""

    count: int = 4
    called: ClassVar[str] = "tiles"
    rewritten: ClassVar[bool] = True

    @classmethod
    def parse(cls, text: str) -> Self | None:
        match = re.fullmatch(r"tiles(?::([1-9]\d{0,3}))?", text)
        return None if match is None else cls(int(match[1])) if match[1] else cls()


@dataclass(frozen=True)
class Units(Shape):
    """Whole units go."""

    removes: ClassVar[bool] = True
    scored: ClassVar[Literal["weights", "units", "blocks"]] = "units"
    called: ClassVar[str] = "units"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        return cls() if text == UNITS else None


@dataclass(frozen=True)
class Depth(Shape):
    """Whole residual blocks go."""

    removes: ClassVar[bool] = True
    scored: ClassVar[Literal["weights", "units", "blocks"]] = "blocks"
    called: ClassVar[str] = "residual blocks"
    ranks: ClassVar[bool] = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        return cls() if text == "blocks" else None


@dataclass(frozen=True)
class Layers(Depth):
    """Whole layers of a transformer go: attention and what follows it."""

    called: ClassVar[str] = "layers"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        return cls() if text == "layers" else None


@dataclass(frozen=True)
class Granularity:
    """An entry of the registry.

    Attributes:
        shape: Reads a value of ``--structure``.
        about: What goes, in a sentence.
    """

    shape: type[Shape]
    about: str


STRUCTURES: Registry[Granularity] = Registry("structure", Plugins("onnxprune.structures"), flag="--structure")
"""All shapes, by how they are written."""

AnyShape = TypeVar("AnyShape", bound=type[Shape])


def structure(written: str, about: str) -> Callable[[AnyShape], AnyShape]:
    """Register a shape.

    Args:
        written: How its values are written: ``block:RxC``.
        about: What goes, in a sentence for lists.
    """

    def register(shape: AnyShape) -> AnyShape:
        STRUCTURES.add(written, Granularity(shape, about), shape)
        return shape

    return register


structure(WEIGHTS, "single weights become zero, anywhere")(Weights)
structure(
    "N:M", "at most N of every M consecutive weights along the reduction axis stay (2:4, 1:4); it sets the sparsity"
)(NM)
structure("block:RxC", "blocks of R outputs by C inputs become zero as one (block:1x4, block:4x1)")(Block)
structure(
    "tiles[:T]",
    "the outputs of a layer are divided into T tiles [4], each tile reads inputs of its own, and the zeros run faster",
)(Tiles)
structure(UNITS, "whole units are removed: channels, neurons, heads, ... (--kinds), and the graph gets smaller")(Units)
structure("blocks", "whole residual blocks are removed, by depth: y = x + f(x) becomes y = x")(Depth)
structure("layers", "whole layers of a transformer are removed, by depth: attention and all up to the next")(Layers)

MIX = (
    "channels+weights",
    "a mix: --unit-share of the sparsity by whole units, the rest by single weights (or a pattern: channels+2:4, "
    "channels+block:1x4)",
)
"""How a mix is written, and what goes in it."""

JOINT = (
    "joint",
    "whole units, tiles and residual blocks compete: what goes loses least for what it saves (with --calibration)",
)
"""How their competition is written, and what goes in it."""

JOINT_PARTS = ("blocks", UNITS, "tiles")
"""What competes, in the order in which it is done."""


@dataclass(frozen=True)
class Parts:
    """A structure, read.

    Attributes:
        text: As it is written.
        removed: What is removed, so that the graph gets smaller; None where nothing is.
        zeros: What becomes zero (after units went, where both do); None where nothing does.
    """

    text: str
    removed: Shape | None
    zeros: Shape | None

    @property
    def texts(self) -> tuple[str, ...]:
        """The parts by themselves, in the order in which they are done."""
        return JOINT_PARTS if self.joint else tuple(self.text.split("+"))

    @property
    def joint(self) -> bool:
        """Whether units, tiles and residual blocks compete."""
        return self.text == JOINT[0]

    @property
    def shape(self) -> Shape:
        """What goes first: all there is to a structure that is no mix."""
        shape = self.removed or self.zeros
        assert shape is not None
        return shape

    @property
    def units(self) -> bool:
        """Whether whole units go."""
        return self.removed is not None and self.removed.scored == "units"

    @property
    def depth(self) -> bool:
        """Whether whole residual blocks go."""
        return self.removed is not None and self.removed.scored == "blocks"

    @property
    def sets(self) -> float | None:
        """The share of the weights that the pattern of zeros sets; None where a sparsity does."""
        return None if self.zeros is None else self.zeros.sets

    @property
    def gone(self) -> str:
        """What weights are that went."""
        return "zero or removed" if self.mixed else "removed" if self.removes else "zero"

    @property
    def removes(self) -> bool:
        """Whether the graph gets smaller."""
        return self.removed is not None

    @property
    def rewritten(self) -> bool:
        """Whether layers are rewritten at the end so that zeros cost no time."""
        return self.zeros is not None and self.zeros.rewritten

    @property
    def mixed(self) -> bool:
        """Whether units go and weights become zero."""
        return self.removed is not None and self.zeros is not None


def parse_structure(text: str) -> Parts:
    """Read the value of ``--structure``.

    Raises:
        RecipeError: It is none.
    """
    if text == JOINT[0]:
        return Parts(text, Units(), Tiles())
    first, plus, second = text.partition("+")
    shape = _shape(first)
    if not plus and shape is not None:
        return Parts(text, shape, None) if shape.removes else Parts(text, None, shape)
    if plus and shape is not None and shape.scored != "units":
        raise RecipeError(f"a mixed structure starts with whole units, such as channels+weights, not {text!r}")
    zeros = _shape(second) if plus else None
    if shape is None or zeros is None or zeros.removes:
        raise RecipeError(
            f"there is no structure {text!r}: choose {', '.join(STRUCTURES)}, or a mix such as channels+weights"
        )
    return Parts(text, shape, zeros)


def _shape(text: str) -> Shape | None:
    shapes = (granularity.shape.parse(text) for granularity in STRUCTURES.values())
    return next((shape for shape in shapes if shape is not None), None)


def parse_pattern(text: str) -> NM | Block:
    """Read ``2:4`` or ``block:1x4``.

    Raises:
        RecipeError: It is neither.
    """
    pattern = NM.parse(text) or Block.parse(text)
    if pattern is None:
        raise RecipeError(
            f"{text!r} is no pattern: write N:M with 0 < N < M, such as 2:4, or block:RxC, such as block:1x4."
        )
    return pattern
