"""What the inputs of a language model are for: token ids, mask, positions, token types, caches.

inputs = text_inputs(model)
inputs.roles["attention_mask"]      # "mask"

It is read off the operators that an input reaches; where they do not tell, off its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from onnxprune.graph.caches import cache_lengths
from onnxprune.graph.dims import dim_name, graph_inputs
from onnxprune.graph.inference import known_extents, states
from onnxprune.graph.input_roles import integer_role
from onnxprune.graph.operators import operator_of

Role = Literal["ids", "mask", "positions", "types", "cache", "branch"]

_MOST_VALUES = 60  # values followed from one input; positions reach their angles within a few


@dataclass(frozen=True)
class TextInputs:
    """The inputs of a model that reads tokens.

    Attributes:
        roles: By name, what each input is for; one that is not known is left out.
        ids: The name of the token ids.
        vocabulary: Token ids are below this; None where the graph does not tell.
        longest: The most tokens of a row: what the graph declares, or the positions it has numbers for; None for any.
        fixed: Whether every row has to have `longest` tokens.
        past: Positions that caches of a fixed length hold before the first token.
        following: Whether the first output scores the tokens of the vocabulary at every position.
        sizes: Extents of free dimensions of caches that the graph settles, by name of the dimension.
    """

    roles: Mapping[str, Role]
    ids: str
    vocabulary: int | None
    longest: int | None
    fixed: bool
    past: int
    following: bool
    sizes: Mapping[str, int]

    @property
    def has_cache(self) -> bool:
        """Whether it is a decoder with a cache."""
        return "cache" in self.roles.values()

    def named(self, role: Role) -> str | None:
        """The name of the first input of a role."""
        return next((name for name, of in self.roles.items() if of == role), None)


def text_inputs(model: ir.Model) -> TextInputs | None:
    """Return what the inputs are for; None where none of them takes token ids."""
    inputs = graph_inputs(model)
    ids = _token_ids(inputs)
    if ids is None:
        return None
    roles: dict[str, Role] = {}
    caches, longest = _caches(model, inputs), _extent(ids, 1)
    for value in inputs:
        role: Role | None = "ids" if value is ids else "cache" if value in caches else _role(value)
        if role is not None:
            roles[str(value.name)] = role
        bound = integer_role(value).bound if role == "positions" else None
        if bound is not None and _extent(ids, 1) is None:
            longest = min(bound, longest or bound)
    past = max((_fixed_length(value, axis) for value, axis in caches.items()), default=0)
    vocabulary = integer_role(ids).bound
    return TextInputs(roles, str(ids.name), vocabulary, longest, _extent(ids, 1) is not None, past,
                      _scores_tokens(model, vocabulary, caches=bool(caches)),
                      known_extents(model).settled if caches else {})  # fmt: skip


def _token_ids(inputs: list[ir.Value]) -> ir.Value | None:
    """The integers of two axes that index the longest table; where none does, the first that is called ids."""
    rows = [v for v in inputs if len(v.shape or ()) == 2 and v.dtype is not None and v.dtype.is_integer()]
    bounds = {value: integer_role(value).bound or 0 for value in rows}
    tables = [value for value in rows if bounds[value] > 2]
    if tables:
        return max(tables, key=lambda value: ("position" not in _name(value), bounds[value]))
    return next((value for value in rows if "ids" in _name(value) and _role(value) not in ("positions", "types")), None)


def _name(value: ir.Value) -> str:
    return str(value.name).lower()


def _role(value: ir.Value) -> Role | None:
    """What an input beside token ids and caches is for."""
    name, rank = _name(value), len(value.shape or ())
    if "branch" in name and value.dtype == ir.DataType.BOOL:
        return "branch"
    if value.dtype is None or (rank != 2 and "mask" not in name):
        return None
    if "mask" in name:
        return "mask"
    if not value.dtype.is_integer():
        return None
    bound = integer_role(value).bound
    if "position" in name or _reaches_angles(value):
        return "positions"
    if bound is not None:
        return "types" if bound == 2 or "type" in name or "segment" in name else "positions"
    return "types" if "type" in name or "segment" in name else "mask"


def _reaches_angles(value: ir.Value) -> bool:
    """Whether the numbers of an input become angles."""
    pending, seen = [value], {value}
    while pending and len(seen) < _MOST_VALUES:
        for node, _ in pending.pop(0).uses():
            if operator_of(node).of_angles:
                return True
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    pending.append(output)
    return False


def _caches(model: ir.Model, inputs: list[ir.Value]) -> dict[ir.Value, int]:
    """The caches among the inputs, with the axis of positions of each."""
    axes = cache_lengths(model)
    for past, _, kept, _ in states(model):
        rank = len(past.shape or ())
        if past in inputs and rank in (4, 5):
            axes.setdefault(past, next(axis for axis in range(rank - 2, 0, -1) if axis not in kept))
    for value in inputs:
        rank = len(value.shape or ())
        if rank in (4, 5) and value.dtype is not None and value.dtype.is_floating_point() and "past" in _name(value):
            axes.setdefault(value, rank - 2)
    return axes


def _extent(value: ir.Value, axis: int) -> int | None:
    dim = None if value.shape is None or len(value.shape) <= axis else value.shape[axis]
    return dim if isinstance(dim, int) else None


def _fixed_length(value: ir.Value, axis: int) -> int:
    return _extent(value, axis) or 0


def _scores_tokens(model: ir.Model, vocabulary: int | None, *, caches: bool) -> bool:
    """Whether the first output is [rows, tokens, vocabulary]."""
    if not model.graph.outputs or model.graph.outputs[0].shape is None:
        return caches
    shape = model.graph.outputs[0].shape
    last = shape[-1] if len(shape) == 3 else None
    if isinstance(last, int) and vocabulary is not None:
        return last >= vocabulary
    return caches and len(shape) == 3


def cache_shape(value: ir.Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of an empty cache: the extents that are fixed or settled, and 0 for those that are free."""
    return tuple(
        dim if isinstance(dim, int) else sizes.get(dim_name(value, axis), 0)
        for axis, dim in enumerate(value.shape or ())
    )
