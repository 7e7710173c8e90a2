"""Kept counts that kernels run fast.

ONNX Runtime's convolutions run in blocks of 16 channels, and a count that is no multiple of 4 leaves the fast path.
MatMul and Gemm are smooth there in float32; tensor cores and most accelerators want multiples of 8, so that products of
64 or more units step by 8. Wide ones step by more, so that choosing takes no longer than it tells. Where `onnxprune
tune` measured this machine, its steps take the place of 16 and 8.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from onnxprune.graph.operators import operator_of
from onnxprune.structure.figures import figures_in_use
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure

RoundTo = int | Literal["auto", "none"]

SMALLEST_BLOCK = 4

_STEPPED, _LEVELS = 64, 256  # of a product: from which width it steps, and to at most how many counts


def conv_block() -> int:
    """Return how many channels a convolution of this machine takes at once."""
    return figures_in_use().block


def step_of(structure: Structure, group: Group, round_to: RoundTo) -> int:
    """Return the number of atoms by which the kept count of a group should step.

    An atom that covers several indices of an axis (a head, a group of channels) steps by so many fewer.
    """
    if round_to == "none":
        return 1
    if round_to == "auto":
        readers = [structure.weights[s.value] for s in group.sites if s.value in structure.weights]
        if not any(operator_of(node).kind == "conv" for node in readers):
            indices = len(group) * _indices_per_atom(structure, group)
            step = figures_in_use().step
            block = 1 if indices < _STEPPED else step * math.ceil(len(group) / (step * _LEVELS))
        else:
            block = conv_block()
    else:
        block = int(round_to)
    return block // math.gcd(block, _indices_per_atom(structure, group))


def _indices_per_atom(structure: Structure, group: Group) -> int:
    site = next(s for s in group.sites if s.value in structure.weights)
    ids = structure.ids(site.value, site.axis)
    if ids is None:
        return 1
    _, atoms = structure.members(ids)
    return max(1, int(np.count_nonzero(atoms == group.atoms[0])))


def kept_counts(n: int, step: int, floor: int) -> list[int]:
    """Return the counts to which a group of ``n`` units may shrink, largest first, none below ``floor``.

    Multiples of the step; below one step multiples of 4; a group of up to 4 units goes one by one.
    """
    counts = set(range(step, n, step))
    if step > SMALLEST_BLOCK:
        counts |= set(range(SMALLEST_BLOCK, min(step, n), SMALLEST_BLOCK))
    if n <= SMALLEST_BLOCK:
        counts |= set(range(1, n))
    return [n, *sorted((k for k in counts if k >= max(1, floor)), reverse=True)]
