"""ONNX Runtime: everything that is measured rather than computed.

session.py   make_session, run          a model in any form becomes a session; its errors become one sentence
inputs.py    random_inputs, ...         valid inputs for a model nobody described: ids, masks, dynamic sizes
comparison.py compare, relative_difference  how far two models' outputs are apart
probe.py     probe_shapes               shapes of inner values, by running the model
latency.py   measure_models, alternate  which of two models is faster, and by how much
"""

from __future__ import annotations

from onnxprune.graph.hints import Feeds
from onnxprune.runtime.comparison import Agreement, OutputDifference, compare, compare_outputs, relative_difference
from onnxprune.runtime.inputs import candidate_sizes, dynamic_dims, one_sample, random_inputs, working_inputs
from onnxprune.runtime.latency import Latency, alternate, measure_models
from onnxprune.runtime.probe import concrete_shapes, known_facts, probe_shapes
from onnxprune.runtime.session import make_session, run

__all__ = [
    "Agreement",
    "Feeds",
    "Latency",
    "OutputDifference",
    "alternate",
    "candidate_sizes",
    "compare",
    "compare_outputs",
    "concrete_shapes",
    "dynamic_dims",
    "known_facts",
    "make_session",
    "measure_models",
    "one_sample",
    "probe_shapes",
    "random_inputs",
    "relative_difference",
    "run",
    "working_inputs",
]
