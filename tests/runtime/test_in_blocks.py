"""Models are checked block by block, where they are large or where that is asked for, and as a whole where that is."""

from __future__ import annotations

import decoders
import numpy as np
import onnx_ir as ir
import pytest

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.errors import VerificationError
from onnxprune.passes import Normalise
from onnxprune.pipeline.run import prune
from onnxprune.runtime import in_blocks, session
from onnxprune.runtime.in_blocks import BlockSession, check_session, checked_by, run_each
from onnxprune.verification.proof import Differs, prove


def decoder(layers: int = 3) -> ir.Model:
    model = model_io.load_any(decoders.fused(layers=layers))
    Normalise()(model)
    return model


def test_block_by_block_gives_what_the_whole_gives() -> None:
    model = decoder()
    batches = runtime.working_inputs(model, count=2)
    expected = [runtime.run(runtime.make_session(model), feeds) for feeds in batches]
    with checked_by("blocks"):
        blocks = check_session(model)
        assert isinstance(blocks, BlockSession)
        found = run_each(blocks, batches, error=VerificationError)
        alone = runtime.run(blocks, batches[0])
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        assert runtime.compare_outputs(a, b).max_rel < 1e-5
    assert runtime.compare_outputs(found[0], alone).max_rel == 0


def test_no_session_holds_more_than_a_few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest part that is loaded has less than half of six layers; of the whole it is all of them.

    Every cut carries two values, of operators that onnx does not know, and caches of any length leave at each.
    """
    model, sizes = decoder(6), list[int]()
    real = session.make_session

    def spy(part: ir.Model, **settings: object) -> object:
        sizes.append(model_io.serialized_size(part))
        return real(part, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(in_blocks, "make_session", spy)
    batches = runtime.working_inputs(model)
    for way in ("whole", "blocks"):
        sizes.clear()
        with checked_by(way):
            run_each(check_session(model), batches, error=VerificationError)
        assert (max(sizes) > 0.9 * model_io.serialized_size(model)) == (way == "whole")
    assert len(sizes) > 3 and max(sizes) < 0.5 * model_io.serialized_size(model)


def test_large_models_go_block_by_block_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    assert not isinstance(check_session(model), BlockSession)
    monkeypatch.setattr(in_blocks, "COPY_LIMIT", model_io.serialized_size(model) - 1)
    assert isinstance(check_session(model), BlockSession)
    with checked_by("whole"):
        assert not isinstance(check_session(model), BlockSession)


def test_a_wrong_cut_is_found_block_by_block() -> None:
    model = decoder()
    wrong = decoder()
    weight = next(v for n, v in wrong.graph.initializers.items() if n.startswith("layers.1") and "down" in n)
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
    with checked_by("blocks"):
        assert prove(model, model, decoder()).difference < 1e-4
        with pytest.raises(Differs):
            prove(model, model, wrong)


def test_a_run_is_verified_in_the_way_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = BlockSession.outputs

    def outputs(self: BlockSession, *args: object) -> object:
        made.append("blocks")
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockSession, "outputs", outputs)
    found = {}
    for way in ("whole", "blocks"):
        made.clear()
        result = prune(decoders.fused(layers=2), sparsity=0.3, structure="channels", kinds="neurons", latency=False,
                       verify_by=way)  # fmt: skip
        assert result.verdict is not None and not result.verdict.unproved
        assert bool(made) == (way == "blocks")
        found[way] = model_io.to_proto(result.model).SerializeToString()
    assert found["whole"] == found["blocks"]


def test_what_does_not_load_is_blamed_on_the_result() -> None:
    model = decoder()
    node = next(n for n in model.graph if n.op_type == "MatMul")
    node.op_type, node.domain = "NoSuchOperator", "nowhere"
    with (
        checked_by("blocks"),
        pytest.raises(onnxprune.OnnxPruneError, match="does not have the operator"),
    ):
        run_each(check_session(model, error=VerificationError), runtime.working_inputs(decoder()),
                 error=VerificationError)  # fmt: skip
