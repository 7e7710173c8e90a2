"""Models in OpenVINO, beside ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import graph, random, two_layers

from onnxprune.errors import VerificationError

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'onnxprune[openvino]'")

from onnxprune.runtime.in_openvino import measure_in_openvino  # noqa: E402


def test_outputs_and_times_are_compared() -> None:
    model = two_layers()
    figure = measure_in_openvino(model, model, {"x": random(4, 8)}, {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": "0.5"})
    assert figure.engine.startswith("OpenVINO 20") and figure.layers == 2
    assert figure.difference < 1e-4
    assert 0 < figure.ratio < 100 and 0 < figure.zeros_ratio < 100
    assert figure.machine_fits or figure.sparse_layers == 0


def test_a_model_that_openvino_lacks_operators_for_is_refused_in_a_sentence() -> None:
    text = "m (float[2,4] x) => (float[2,4] y) { y = com.microsoft.QuickGelu (x) }"
    odd = graph(text, {}, domains=', "com.microsoft" : 1')
    with pytest.raises(VerificationError, match="OpenVINO does not load the model"):
        measure_in_openvino(odd, odd, {"x": np.ones((2, 4), np.float32)}, {})
