"""One table of what each operator does to data. Every other module asks it."""

from __future__ import annotations

# Constant operands that must not be zeroed to show that a unit is gone: dividing by them, or scaling to integers.
_NEVER_ZEROED = {
    ("Div", 1), ("Log", 0), ("Reciprocal", 0), ("Pow", 0), ("Mod", 1), ("QuantizeLinear", 1), ("DequantizeLinear", 1),
    ("QLinearConv", 1), ("QLinearConv", 4), ("QLinearConv", 6), ("QLinearMatMul", 1), ("QLinearMatMul", 4),
    ("QLinearMatMul", 6), ("DynamicQuantizeLSTM", 8), ("QGemm", 1), ("QGemm", 4),
}  # fmt: skip


_VIEWS = {"Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
