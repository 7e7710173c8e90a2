"""What a run did to each weight: kept and removed, by count and by magnitude."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.pipeline.prepare import prepare
from onnxprune.structure.weights import prunable_weights

if TYPE_CHECKING:
    from onnxprune.pipeline.result import Result

BINS = 24
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class Layer:
    """One weight before and after.

    Attributes:
        name, operator: The weight, and the operator that reads it.
        shape, new_shape: Before and after; the latter is None where the whole weight went.
        total, kept: Its elements, and how many are there and not zero afterwards.
        kept_by_size, removed_by_size: How many were kept and removed, by magnitude before pruning: `BINS` counts from
            0 to `largest`; empty where the weight was rearranged, so that they cannot be told apart.
        largest: The largest magnitude.
        form: How the written file stores it.
        pinned: Axes that could not be cut, with the operator that is why.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    new_shape: tuple[int, ...] | None
    total: int
    kept: int
    kept_by_size: tuple[int, ...]
    removed_by_size: tuple[int, ...]
    largest: float
    form: str
    pinned: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """The share that is zero or gone."""
        return 1 - self.kept / self.total if self.total else 0.0


def layers(original: ir.Model, result: Result) -> Iterator[Layer]:
    """Compare the weights of a model with those of its pruned form, in the order of the model.

    Args:
        original: The model before; it is left as it is.
        result: What pruning made of it.
    """
    structure = prepare(original.clone())
    delivery = result.delivery
    plain = result.model if delivery is None else delivery.plain
    after = {n: v.const_value for n, v in plain.graph.initializers.items()}
    packing = delivery.packing if delivery is not None else None
    forms = {t.name: t.form for t in packing.packed} if packing is not None else {}
    for weight in prunable_weights(structure):
        tensor = weight.value.const_value
        assert tensor is not None
        new = after.get(weight.name)
        array = tensor.numpy()
        small = None if new is None else new.numpy()
        mask = _kept_mask(array.shape, small, result.kept.get(weight.name, {}))
        kept_by_size, removed_by_size, largest = _by_size(array, mask)
        yield Layer(
            name=weight.name,
            operator=weight.node.op_type,
            shape=tuple(array.shape),
            new_shape=None if small is None else tuple(small.shape),
            total=int(array.size),
            kept=0 if small is None else int(np.count_nonzero(small)),
            kept_by_size=kept_by_size,
            removed_by_size=removed_by_size,
            largest=largest,
            form=forms.get(weight.name, "dense"),
            pinned=tuple(structure.why_pinned(weight.value)),
        )


def _kept_mask(shape: tuple[int, ...], small: npt.NDArray[Any] | None, kept: Any) -> npt.NDArray[np.bool_] | None:
    """Return which elements are kept, None where they cannot be found again."""
    mask = np.zeros(shape, bool)
    if small is None:
        return mask
    indices = [np.asarray(kept.get(axis, np.arange(extent)), np.intp) for axis, extent in enumerate(shape)]
    if tuple(len(i) for i in indices) != small.shape:
        return None
    mask[np.ix_(*indices)] = small != 0
    return mask


def _by_size(
    array: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None
) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """Count kept and removed elements by magnitude, on a regular sample of large weights."""
    step = max(1, array.size // _SAMPLE)
    sizes = np.abs(array.reshape(-1)[::step].astype(np.float32))
    largest = float(sizes.max(initial=0.0))
    if mask is None or not np.isfinite(largest) or largest == 0:
        return (), (), largest
    flags = mask.reshape(-1)[::step]
    counts = [np.histogram(sizes[f], BINS, (0.0, largest))[0] for f in (flags, ~flags)]
    return tuple(counts[0].tolist()), tuple(counts[1].tolist()), largest
