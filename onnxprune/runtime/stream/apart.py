"""How far the outputs of a changed model are from the model's own, over many inputs.

apart = Apart(model, feeds)
apart.of(changed)           # 0 where nothing is changed
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.graph.hints import Feeds
from onnxprune.runtime.session import make_session, run
from onnxprune.runtime.statistics import DENSE, output_error, shadow
from onnxprune.runtime.stream.effects import Reference


class Apart:
    """A model, and inputs on which others are compared with it.

    A detector's outputs are compared as boxes and scores, batch by batch (`detector_distance`, the mean over batches):
    the squares of boxes in pixels would count where nothing is seen, and little else. All other outputs are compared
    by their relative squared error inside ONNX Runtime, so that they may be as large as they like.

    Args:
        model: The model, which stays as it is.
        feeds: Batches, at least one.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds]) -> None:
        self._model, self._feeds = model, feeds
        self._names = [str(v.name) for v in model.graph.outputs]
        self._head = Reference.of([run(make_session(model), feeds[0])], feeds[0]).head

    def of(self, changed: ir.Model) -> float:
        """Return how far the outputs of a model with the same inputs and outputs are."""
        joined = shadow(self._model, changed)
        if self._head is None:
            return output_error(joined, self._feeds, self._names)
        values = {str(v.name): v for node in joined.graph for v in node.outputs}
        dense = [DENSE + name for name in self._names]
        joined.graph.outputs.extend(values[name] for name in dense if name in values)  # not an input that is handed on
        session, total = make_session(joined), 0.0
        for feed in self._feeds:
            outputs = run(session, feed)
            ours = {name: outputs[name] for name in self._names}
            theirs = {name: outputs.get(DENSE + name, array) for name, array in ours.items()}
            total += Reference([theirs], self._head).divergence([ours])
        return total / len(self._feeds)
