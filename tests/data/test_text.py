"""Text as data: rows of tokens with all that a graph takes beside them, and the metrics of language models."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import decoders
import numpy as np
import onnx_ir as ir
import pytest
import text_models
from text_models import VOCABULARY, WORDS, ids_of, write_tokenizer

from onnxprune.data.metrics import METRICS, cosines, pooled, rank_correlation
from onnxprune.data.readers import Data, read_data
from onnxprune.data.sources import first_batch
from onnxprune.errors import DataError, OnnxPruneError, RecipeError
from onnxprune.pipeline.run import prune
from onnxprune.pipeline.scan import sensitivity
from onnxprune.recipe.training import DataSettings
from onnxprune.runtime import make_session, run
from onnxprune.verification.evaluate import evaluate, measured

pytest.importorskip("tokenizers", reason="text is not installed: pip install 'onnxprune[text]'")

STORY = " ".join(np.random.default_rng(0).choice(WORDS, 400).tolist())


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def records(folder: Path, *lines: object, name: str = "data.jsonl") -> Path:
    return write(folder, name, "\n".join(json.dumps(line) for line in lines) + "\n")


def settings(folder: Path, **more: object) -> DataSettings:
    return DataSettings(tokenizer=write_tokenizer(folder), **more)  # type: ignore[arg-type]


def read(model: ir.Model, path: Path, **more: object) -> Data:
    return read_data(path, model, settings(path.parent, **more))


# --- rows


def test_a_decoder_gets_full_rows_and_the_tokens_that_follow(tmp_path: Path) -> None:
    data = read(text_models.scorer(), write(tmp_path, "story.txt", STORY), sequence_length=16)
    batch = first_batch(data.source, 99)
    tokens = [1, *ids_of(*STORY.split())]
    assert batch.inputs[0].shape == (400 // 16, 16)
    assert batch.inputs[0].reshape(-1).tolist() == tokens[:400]
    assert batch.targets[0].reshape(-1).tolist() == tokens[1:401]
    assert data.outputs == (0,) and data.metric == "perplexity"


def test_records_are_packed_one_after_the_other(tmp_path: Path) -> None:
    path = records(tmp_path, {"text": "the cat sat"}, {"text": "a dog ran"}, {"text": "far away"})
    ids = first_batch(read(text_models.scorer(), path, sequence_length=5).source, 9).inputs[0]
    assert ids.tolist() == [[1, *ids_of("the", "cat", "sat"), 1], [*ids_of("a", "dog", "ran"), 1, *ids_of("far")]]


def test_caches_are_empty_and_as_wide_as_the_operators_want(tmp_path: Path) -> None:
    model = ir.from_proto(decoders.fused(layers=2))  # the width of its caches is a free dimension
    data = read(model, write(tmp_path, "story.txt", STORY), sequence_length=12)
    feeds = dict(zip([str(v.name) for v in model.graph.inputs], first_batch(data.source, 3).inputs, strict=True))
    assert feeds["past_key_values.1.value"].shape == (3, decoders.KV_HEADS, 0, decoders.SIZE)
    assert feeds["attention_mask"].tolist() == [[1] * 12] * 3
    assert run(make_session(model), feeds)["logits"].shape == (3, 12, decoders.VOCABULARY)


def test_a_graph_of_fixed_lengths_gets_its_lengths(tmp_path: Path) -> None:
    model = text_models.fixed_decoder(past=3, length=4)
    data = read(model, write(tmp_path, "story.txt", STORY))
    ids, mask, places, cache = first_batch(data.source, 2).inputs
    assert ids.shape == (2, 4) and cache.shape == (2, 2, 3, 4) and not cache.any()
    assert mask.tolist() == [[0, 0, 0, 1, 1, 1, 1]] * 2
    assert places.tolist() == [[0, 1, 2, 3]] * 2, "they become angles, whatever they are called"
    assert np.isfinite(evaluate(model, data)[1])
    with pytest.raises(DataError, match="--sequence-length 8 does not fit, since the model takes rows of 4 tokens"):
        read(model, tmp_path / "story.txt", sequence_length=8)


def test_an_encoder_gets_a_row_for_each_line_with_padding(tmp_path: Path) -> None:
    path = write(tmp_path, "lines.txt", "the cat sat\n\na dog\nthe cat sat on a mat\n")
    data = read(text_models.encoder(), path, sequence_length=5)
    ids, mask, types = first_batch(data.source, 9).inputs
    assert ids.tolist() == [[1, *ids_of("the", "cat", "sat"), 0], [1, *ids_of("a", "dog"), 0, 0],
                            [1, *ids_of("the", "cat", "sat", "on")]]  # fmt: skip
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1] * 5] and not types.any()
    assert data.outputs == () and data.metric == "cosine"


@pytest.mark.parametrize("how", ["counted", "cut", "table"])
def test_a_table_of_positions_limits_a_row(tmp_path: Path, how: str) -> None:
    model, path = text_models.placed_encoder(64, how), write(tmp_path, "story.txt", STORY)
    data = read(model, path)
    assert first_batch(data.source, 1).inputs[0].shape == (1, 64), "and not the 128 of the default"
    assert np.isfinite(run(make_session(model), {"input_ids": first_batch(data.source, 1).inputs[0]})["vectors"]).all()
    assert first_batch(read(model, path, sequence_length=32).source, 1).inputs[0].shape == (1, 32)
    with pytest.raises(DataError, match="--sequence-length 65 does not fit, since the model has positions for 64 tok"):
        read(model, path, sequence_length=65)
    assert first_batch(read(text_models.placed_encoder(200, how), path).source, 1).inputs[0].shape == (1, 128)


def test_inputs_are_known_by_what_they_reach(tmp_path: Path) -> None:
    path = write(tmp_path, "lines.txt", "the cat sat\na dog\n")
    named = first_batch(read(text_models.encoder(), path).source, 2).inputs
    others = first_batch(read(text_models.encoder(names=("a", "b", "c")), path).source, 2).inputs
    assert all(np.array_equal(x, y) for x, y in zip(named, others, strict=True))


def test_the_user_may_say_how_rows_are_made(tmp_path: Path) -> None:
    path = write(tmp_path, "lines.txt", "the cat sat\na dog ran far away\n")
    packed = first_batch(read(text_models.encoder(), path, text="packed", sequence_length=3).source, 9)
    assert packed.inputs[0].reshape(-1).tolist() == [1, *ids_of("the", "cat", "sat", "a", "dog", "ran", "far", "away")]
    lines = read(text_models.scorer(), path, text="lines")
    assert first_batch(lines.source, 9).inputs[0].shape == (2, 6) and lines.outputs == ()


def test_a_masked_language_model_has_no_next_token(tmp_path: Path) -> None:
    path = write(tmp_path, "lines.txt", "the cat sat\na dog\n")
    data = read_data(path, text_models.scorer(), DataSettings(tokenizer=write_tokenizer(tmp_path, mask=True)))
    assert data.outputs == () and data.metric == "agreement"


# --- metrics


def test_perplexity_is_exp_of_the_mean_loss(tmp_path: Path) -> None:
    model = text_models.scorer()
    data = read(model, write(tmp_path, "story.txt", STORY), sequence_length=16)
    batch = first_batch(data.source, 99)
    logits = run(make_session(model), {"input_ids": batch.inputs[0]})["logits"].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = p.reshape(-1, VOCABULARY)[np.arange(400), batch.targets[0].reshape(-1)]
    name, value = evaluate(model, data)
    assert name == "perplexity" and value == pytest.approx(np.exp(-np.log(chosen).mean()), rel=1e-6)
    assert not METRICS["perplexity"].higher_is_better
    assert METRICS["perplexity"].update is not None
    huge, _ = METRICS["perplexity"].update(np.array([[[1e4, 0.0]]], np.float32), np.array([[1]]))
    assert METRICS["perplexity"].of_sum(huge, 1) == np.inf, "no overflow, no traceback"


def test_agreement_of_next_tokens_is_measured_without_targets_being_looked_at(tmp_path: Path) -> None:
    model = text_models.scorer()
    data = read(model, write(tmp_path, "story.txt", STORY), sequence_length=16)
    other = text_models.scorer()
    head = other.graph.initializers["head"].const_value.numpy().copy()
    head[:, ids_of("cat")[0]] += 9 * np.abs(head).max()
    other.graph.initializers["head"].const_value = ir.tensor(head)
    both = [
        run(make_session(m), {"input_ids": first_batch(data.source, 99).inputs[0]})["logits"] for m in (model, other)
    ]
    wanted = float((both[0].argmax(-1) == both[1].argmax(-1)).mean())
    assert 0 < wanted < 1
    assert measured(model, other, data, "agreement").after == pytest.approx(wanted)


def pairs(folder: Path, name: str) -> Path:
    rng = np.random.default_rng(1)
    rows = [(" ".join(rng.choice(WORDS, rng.integers(2, 7))), " ".join(rng.choice(WORDS, rng.integers(2, 7))), i / 10)
            for i in range(30)]  # fmt: skip
    if name.endswith(".jsonl"):
        return records(folder, *({"sentence1": a, "sentence2": b, "score": s} for a, b, s in rows), name=name)
    return write(folder, name, "sentence1,sentence2,score\n" + "".join(f"{a},{b},{s}\n" for a, b, s in rows))


@pytest.mark.parametrize("name", ["sts.jsonl", "sts.csv"])
def test_pairs_with_scores_give_spearman_of_pooled_vectors(tmp_path: Path, name: str) -> None:
    model = text_models.encoder()
    data = read(model, pairs(tmp_path, name))
    ids, mask, types = first_batch(data.source, 99).inputs
    vectors = run(make_session(model), {"input_ids": ids, "attention_mask": mask, "types": types})["vectors"]
    means = np.stack([v[m == 1].astype(np.float64).mean(0) for v, m in zip(vectors, mask, strict=True)])
    a, b = means[::2], means[1::2]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    ranks = [np.argsort(np.argsort(x)) for x in (cosine, np.arange(30))]
    assert len(ids) == 60 and data.metric == "spearman"
    assert evaluate(model, data)[1] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert measured(model, model, data, "cosine").after == pytest.approx(1.0)
    turned = replace(data, scores=np.argsort(np.argsort(cosine)))
    worse = text_models.encoder()
    worse.graph.initializers["words"].const_value = ir.tensor(np.eye(VOCABULARY, text_models.WIDTH, dtype=np.float32))
    assert evaluate(model, turned)[1] == pytest.approx(1.0)
    assert measured(model, worse, turned).drop > 0 and measured(model, worse, turned, "cosine").drop > 0


def test_cosine_is_the_mean_over_rows_between_pooled_vectors_of_both_models(tmp_path: Path) -> None:
    """By hand, over the tokens that the mask counts; the metric of text without pairs, and by its name."""
    model, other = text_models.encoder(), text_models.encoder()
    words = model.graph.initializers["words"].const_value
    assert words is not None
    changed = words.numpy() + np.linspace(-1, 1, words.size, dtype=np.float32).reshape(words.shape.numpy())
    other.graph.initializers["words"].const_value = ir.tensor(changed)
    data = read(model, write(tmp_path, "lines.txt", "the cat\na dog sat\nthe\n"))
    ids, mask, types = first_batch(data.source, 99).inputs
    feeds = {"input_ids": ids, "attention_mask": mask, "types": types}
    a, b = (
        np.stack([v[m == 1].astype(np.float64).mean(0) for v, m in zip(vectors, mask, strict=True)])
        for vectors in (run(make_session(m), feeds)["vectors"] for m in (model, other))
    )
    expected = np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert data.metric == "cosine" and 0 < expected < 0.999
    for name in (None, "cosine"):
        found = measured(model, other, data, name)
        assert found.name == "cosine" and found.before == pytest.approx(1.0)
        assert found.after == pytest.approx(expected, abs=1e-6) and found.drop == pytest.approx(1 - expected, abs=1e-6)


def test_spearman_shares_ranks_and_needs_pairs(tmp_path: Path) -> None:
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(0.9486833)
    assert np.isnan(rank_correlation(np.zeros(3), np.arange(3)))
    assert cosines(np.zeros((1, 2)), np.ones((1, 2))).tolist() == [0.0]
    assert pooled(np.ones((2, 3)), None).shape == (2, 3)
    data = read(text_models.encoder(), write(tmp_path, "lines.txt", "the cat\na dog\n"))
    with pytest.raises(DataError, match="'spearman' is measured on pairs of sentences with scores"):
        evaluate(text_models.encoder(), data, "spearman")


# --- the whole way


def test_a_decoder_is_pruned_with_text_alone(tmp_path: Path) -> None:
    model = ir.from_proto(decoders.fused(layers=2))
    story = write(tmp_path, "story.txt", STORY)
    reading = {"tokenizer": write_tokenizer(tmp_path), "sequence_length": 16}
    result = prune(model, sparsity=0.3, structure="weights", criterion="wanda", calibration=story, eval_data=story,
                   reading=reading, latency=False)  # fmt: skip
    metric = result.figures["metric"]
    assert metric["name"] == "perplexity" and metric["samples"] == 25 and metric["after"] > 1
    curves = sensitivity(model, eval_data=story, levels=(0.5,), reading=reading)
    assert curves.measured == "perplexity"


# --- refusals


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eval_data": "story.txt"}, "give --tokenizer tokenizer.json"),
        ({"calibration": "story.jsonl"}, "give --tokenizer tokenizer.json"),
        ({"reading": {"tokenizer": "t.json"}}, "--tokenizer says how text is read, and no data are"),
        ({"reading": {"sequence_length": 8}, "eval_data": "x.npz"}, "--sequence-length says how text is read"),
    ],
)
def test_settings_are_refused_before_any_work(given: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        prune("no-such-model.onnx", sparsity=0.5, **given)  # type: ignore[arg-type]


def test_where_the_package_is_absent_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs the package tokenizers, .* pip install 'onnxprune\[text\]'"):
        prune("no-such-model.onnx", sparsity=0.5, eval_data="story.txt", reading={"tokenizer": "t.json"})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.txt", "", "is empty: it holds no text"),
        ("data.txt", "the cat", "holds 3 tokens, which do not fill one row of 129"),
        ("data.jsonl", "{'text': 1}", "line 1: this is no JSON"),
        ("data.jsonl", '"the cat"', "line 1: this is no record"),
        ("data.jsonl", '{"text": "a"}\n\n{"content": "b"}', "line 3: it has no text 'text'"),
        ("data.jsonl", "\n", "it holds no records"),
        (
            "data.jsonl",
            '{"sentence1": "a", "sentence2": "b", "score": "high"}',
            "line 1: the score 'high' is no number",
        ),
        ("data.jsonl", '{"sentence1": "a", "sentence2": "b", "score": NaN}', "line 1: the score nan is no number"),
        ("data.csv", "sentence1,sentence2,score\na,b\n", "line 2: the score None is no number"),
    ],
)
def test_a_bad_file_ends_in_one_sentence(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(text_models.scorer(), write(tmp_path, name, content))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text in UTF-8"):
        read(text_models.scorer(), tmp_path / "data.txt")


def test_a_tokenizer_that_is_none_or_of_another_model_is_refused(tmp_path: Path) -> None:
    story = write(tmp_path, "story.txt", STORY)
    with pytest.raises(DataError, match=r"no-tokenizer.json' is no tokenizer.json"):
        tokenizer = write(tmp_path, "no-tokenizer.json", "{}")
        read_data(story, text_models.scorer(), DataSettings(tokenizer=tokenizer))
    with pytest.raises(DataError, match="knows tokens up to 9: it is the tokenizer of another model"):
        read(text_models.encoder(vocabulary=10), story)


def test_an_input_that_is_not_known_is_named(tmp_path: Path) -> None:
    model = text_models.scorer()
    extra = ir.Value(name="speaker", shape=ir.Shape(["batch", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(extra)
    with pytest.raises(OnnxPruneError, match="what the model's input 'speaker' is for is not known"):
        read(model, write(tmp_path, "story.txt", STORY))
