"""Zeros stored small in standard ONNX: pack, unpack, and what it cost.

    packed, report = pack(model)                        # bit-exact
    packed, report = pack(model, values="int8", mode="smallest")
    model = unpack(packed)

`values.py` codes the numbers, `positions.py` codes where they are, `decoder.py` writes the operators that undo both
when a session loads, `packer.py` chooses per tensor. `sparse.py` writes `sparse_initializer` for the tools
that read it.
"""

from onnxprune.packing.fidelity import OutputError, output_error
from onnxprune.packing.packer import Mode, Values, pack
from onnxprune.packing.report import PackReport, TensorReport
from onnxprune.packing.sparse import to_sparse_initializers
from onnxprune.packing.unpacker import is_packed, unpack

__all__ = [
    "Mode",
    "OutputError",
    "PackReport",
    "TensorReport",
    "Values",
    "is_packed",
    "output_error",
    "pack",
    "to_sparse_initializers",
    "unpack",
]
