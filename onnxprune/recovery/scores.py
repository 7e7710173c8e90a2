"""Which layers give scores of classes, and when they are better left alone.

Calibration inputs may show few of the classes that count. A last layer that is fitted to a few hundred of them, with a
thousand inputs of its own, gives their scores exactly and ruins those of other classes: MobileNetV2 at half of the work
has 28.8 % of other pictures right with the classifier of the dense network, 26.3 % with one fitted to 300 pictures, and
26.3 % where only its bias is fitted (benchmarks/units.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.graph.linear import Linear
from onnxprune.recovery.fitting import Layer
from onnxprune.runtime.session import make_session, run
from onnxprune.runtime.statistics import Moments
from onnxprune.runtime.stream.effects import CLASSES, kind_of
from onnxprune.runtime.stream.gather import Batches


def giving_scores(model: ir.Model, layers: Sequence[Linear], samples: Batches) -> set[str]:
    """Return the names of the layers behind which no other lies, and from which scores of classes come.

    Args:
        model: The dense model.
        layers: Its layers.
        samples: Calibration inputs.
    """
    outputs = run(make_session(model), samples.feeds[0])
    scores = {name for name, array in outputs.items() if array.dtype.kind == "f" and kind_of(array) in CLASSES}
    if not scores:
        return set()
    nodes = {layer.node for layer in layers}
    return {layer.name for layer in layers if _leads_only_to(layer.output, scores, nodes)}


def too_few_rows(layer: Layer, folds: Sequence[Moments]) -> str | None:
    """Say why a layer that gives scores of classes stays as it is; None where it can be fitted.

    Where all outputs have their own zeros, most of what they read is gone, and a fit brings back more than it ruins.
    """
    inputs, rows = layer.dense.shape[-1], int(sum(m.rows for m in folds))
    if rows >= inputs or not (layer.support == layer.support[:, :1]).all():
        return None
    return f"it gives scores of classes, and {rows} samples are fewer than its {inputs} inputs"


def _leads_only_to(value: ir.Value, scores: set[str], layers: set[ir.Node]) -> bool:
    waiting, seen, reached = [value], set[ir.Value](), False
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.is_graph_output():
            if str(value.name) not in scores:
                return False
            reached = True
        for node in value.consumers():
            if node in layers:
                return False
            waiting += node.outputs
    return reached
