"""Whether an attention looks back only: by its operator, a triangle, compared positions or a constant mask."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import graph, random

from onnxprune.pipeline.inspect import inspect
from onnxprune.pipeline.prepare import prepare
from onnxprune.structure.architecture import attentions
from onnxprune.structure.causality import is_causal

FORMS = {
    "a triangle": ("o = ConstantOfShape(square) t = Trilu <upper = 0> (o) c = Cast <to = 9> (t)", True),
    "positions": ("i = Unsqueeze(places, zero) j = Unsqueeze(places, one) c = LessOrEqual(i, j)", True),
    "a constant": ("c = Identity(lower)", True),
    "a limit": ("i = Unsqueeze(places, zero) l = LessOrEqual(i, limit) c = Expand(l, square)", False),
    "padding": ("c = Cast <to = 9> (mask)", False),
}
CONSTANTS = {
    "table": random(40, 16), "wq": random(16, 16), "wk": random(16, 16), "wv": random(16, 16), "head": random(16, 40),
    "square": np.array([6, 6]), "places": np.arange(6), "zero": np.array([0]), "one": np.array([1]),
    "limit": np.array(4), "least": np.array(-1e9, np.float32), "lower": np.tril(np.ones((6, 6), bool)),
}  # fmt: skip


def spelled_out(form: str) -> object:
    return graph(
        f"""g (int64[batch, 6] input_ids, int64[batch, 1, 6] mask) => (float[batch, 6, 40] logits) {{
             x = Gather(table, input_ids) {form} q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
             kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul(q, kt) m = Where(c, s, least)
             p = Softmax <axis = -1> (m) o2 = MatMul(p, v) logits = MatMul(o2, head) }}""",
        CONSTANTS,
    )


@pytest.mark.parametrize("name", FORMS)
def test_masks(name: str) -> None:
    text, causal = FORMS[name]
    structure = prepare(spelled_out(text))  # type: ignore[arg-type]
    (attention,) = attentions(structure)
    assert is_causal(structure.facts, attention.node) is causal
    line = inspect(spelled_out(text)).line  # type: ignore[arg-type]
    assert line.startswith("decoder, 1 layer" if causal else "language model, 1 layer")


@pytest.mark.parametrize(("settings", "causal"), [("", False), (", is_causal = 1", True)])
def test_attention_as_one_operator(settings: str, causal: bool) -> None:
    model = graph(
        f"""g (float[batch, tokens, 16] x) => (float[batch, tokens, 8] y) {{
             q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
             a = Attention <q_num_heads = 4, kv_num_heads = 4{settings}> (q, k, v) y = MatMul(a, u) }}""",
        {"wq": random(16, 16), "wk": random(16, 16), "wv": random(16, 16), "u": random(16, 8)}, opset=23,
    )  # fmt: skip
    structure = prepare(model)
    (attention,) = attentions(structure)
    assert is_causal(structure.facts, attention.node) is causal
