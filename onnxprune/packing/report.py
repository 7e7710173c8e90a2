"""What packing did, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorReport:
    """One initializer (or large Constant).

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: ONNX name of its data type.
        form: How positions are stored: a name of `positions.FORMS`; "dense" when every element is.
        values: How values are stored: "exact", "fp16", "int8", "codebook16" or "codebook256".
        sparsity: Share of elements that are zero, or None where the tensor was not looked into.
        dense_bytes: What it takes in the file unpacked.
        packed_bytes: What it takes now, nodes and constants included.
        relative_error: ||w - packed w|| / ||w||; 0 for exact values.
        reason: Why it was left dense, or why its values were kept exact; "" where there is nothing to say.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    form: str
    values: str
    sparsity: float | None
    dense_bytes: int
    packed_bytes: int
    relative_error: float = 0.0
    reason: str = ""

    @property
    def is_packed(self) -> bool:
        """Whether the file holds it in another form. Positions may be dense all the same: int8, or a codebook."""
        return self.packed_bytes < self.dense_bytes


@dataclass(frozen=True)
class PackReport:
    """All tensors of a model, in the order of its graphs.

    Attributes:
        mode: The mode asked for.
        values: The values asked for.
        tensors: One entry for each.
    """

    mode: str
    values: str
    tensors: tuple[TensorReport, ...]

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors before."""
        return sum(t.dense_bytes for t in self.tensors)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all tensors after."""
        return sum(t.packed_bytes for t in self.tensors)

    @property
    def ratio(self) -> float:
        """packed_bytes / dense_bytes; 1.0 for a model without tensors."""
        return self.packed_bytes / self.dense_bytes if self.dense_bytes else 1.0

    @property
    def packed(self) -> tuple[TensorReport, ...]:
        """The tensors that were packed."""
        return tuple(t for t in self.tensors if t.is_packed)

    @property
    def left_dense(self) -> tuple[TensorReport, ...]:
        """The tensors that were not, each with its reason."""
        return tuple(t for t in self.tensors if not t.is_packed)

    @property
    def obstacle(self) -> str:
        """Why nothing was packed: the reason that keeps most bytes dense; "" where something was."""
        kept: Counter[str] = Counter()
        for tensor in self.left_dense:
            kept[tensor.reason] += tensor.dense_bytes
        return "" if self.packed or not kept else kept.most_common(1)[0][0]
