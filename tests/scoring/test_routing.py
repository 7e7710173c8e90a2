"""``--criterion routing``: experts are ranked by the share of the tokens that their router gives them."""

from __future__ import annotations

import decoders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from structure.graphs import load
from structure.test_experts import GATHERED, WEIGHTS

from onnxprune import model_io
from onnxprune.errors import RecipeError
from onnxprune.pipeline.run import prune
from onnxprune.scoring import Evidence, find_criterion, prunable_weights, unit_scores
from onnxprune.structure.analysis import analyse

X = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)


def counted(probabilities: np.ndarray, taken: int) -> np.ndarray:
    """The same by hand, token by token."""
    shares = np.zeros(probabilities.shape[1])
    for row in probabilities:
        for expert in np.argsort(-row)[:taken]:
            shares[expert] += row[expert] / len(probabilities)
    return shares


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)


def test_experts_that_are_picked_by_gather_count_their_tokens() -> None:
    model = load(GATHERED, 17, **WEIGHTS)
    structure = analyse(model)
    (group,) = [g for g in structure.groups if g.kind == "experts"]
    criterion = find_criterion("routing").on(Evidence(structure, {"x": X}))
    scores = unit_scores(structure, prunable_weights(structure), [group], criterion, 0)[group.atoms]
    router = model.graph.initializers["router"].const_value
    assert router is not None
    expected = counted(softmax(X @ router.numpy()), 2)
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("bits", [0, 4])
def test_the_experts_that_get_most_tokens_stay(bits: int) -> None:
    """A bias of the router that no token overcomes decides."""
    proto = decoders.fused(layers=1, experts=6, bits=bits)
    router = next(t for t in proto.graph.initializer if t.name == "layers.0.router.weight")
    rng = np.random.default_rng(1)
    weight = 0.01 * rng.standard_normal((decoders.WIDTH, 6))
    router.raw_data = weight.astype(np.float32).tobytes()
    put_bias(proto.graph, np.array([0, 3, 0, 2, 0, 0], np.float32))
    tokens = rng.integers(0, decoders.VOCABULARY, (8, 5))
    caches = {f"past_key_values.0.{kind}": np.zeros((8, decoders.KV_HEADS, 0, decoders.SIZE), np.float32)
              for kind in ("key", "value")}  # fmt: skip
    data = {"input_ids": tokens, "attention_mask": np.ones((8, 5), np.int64), **caches}
    result = prune(proto, sparsity=0.9, structure="channels", kinds="experts", allow_inexact=True, round_to="none",
                   criterion="routing", calibration=data, recover=("no",), latency=False)  # fmt: skip
    kept = {t.name: t for t in model_io.to_proto(result.model).graph.initializer}["router.bias"]
    assert np.frombuffer(kept.raw_data, np.float32).tolist() == [3, 2]
    ort.InferenceSession(model_io.to_proto(result.model).SerializeToString())


def put_bias(graph: onnx.GraphProto, bias: np.ndarray) -> None:
    """Put a bias behind the router's product."""
    graph.initializer.append(onnx.numpy_helper.from_array(bias, "router.bias"))
    place = next(i for i, n in enumerate(graph.node) if n.output[0] == "layers.0.router.out")
    graph.node.insert(place + 1, onnx.helper.make_node("Add", ["layers.0.router.out", "router.bias"], ["biased"]))
    graph.node[place + 2].input[0] = "biased"


def test_other_units_are_refused_in_words() -> None:
    with pytest.raises(RecipeError, match="--criterion routing scores experts"):
        prune(load(GATHERED, 17, **WEIGHTS), sparsity=0.3, structure="channels", criterion="routing", latency=False,
              calibration={"x": X}, kinds="neurons")  # fmt: skip
