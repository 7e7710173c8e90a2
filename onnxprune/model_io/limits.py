"""What is accepted: size limits, and the opset and IR versions that the installed ONNX Runtime runs."""

from __future__ import annotations

import dataclasses
import functools

import onnx
import onnxruntime


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on what `load` accepts.

    Attributes:
        oldest_opset: Models of an older ai.onnx opset are upgraded to this one.
        max_dense_bytes: Largest size in bytes a sparse tensor may take when it is made dense; a few bytes in a file
            can claim terabytes.
    """

    oldest_opset: int = 7
    max_dense_bytes: int = 4 << 30


_RUNS = (range(3, 11), range(1, 22))  # IR versions and opsets of ONNX Runtime 1.20, the oldest that is installed


@functools.cache
def runtime_refusal(ir_version: int, opset: int | None) -> str | None:
    """Why the installed onnx and ONNX Runtime cannot work with these versions; None when they can.

    ONNX Runtime publishes no list, so of newer ones a model of one Identity node with these very numbers is tried.
    """
    if ir_version in _RUNS[0] and (opset is None or opset in _RUNS[1]):
        return None
    known = onnx.defs.onnx_opset_version()
    if opset is not None and opset > known:
        return f"the installed onnx {onnx.__version__} knows operator sets up to {known}"
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [info("x", onnx.TensorProto.FLOAT, [1])],
        [info("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset or 13)])
    model.ir_version = ir_version
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return f"the installed ONNX Runtime {onnxruntime.__version__} does not run it"
    return None
