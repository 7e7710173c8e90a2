"""The trained models in models/: each runs, is as accurate as its README states, and was not tested on what it saw."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

MODELS = Path(__file__).resolve().parent.parent / "models"
STATED = {
    name: (int(right), int(count))
    for name, right, count in re.findall(r"`(\w+\.onnx)`.*\((\d+)/(\d+)\)", (MODELS / "README.md").read_text())
}


DECODER = "shakespeare_decoder"


def test_the_readme_states_every_model() -> None:
    assert {*STATED, f"{DECODER}.onnx"} == {path.name for path in MODELS.glob("*.onnx")} and len(STATED) >= 3


@pytest.mark.parametrize("name", STATED)
def test_accuracy_is_what_the_readme_states(name: str) -> None:
    accuracy = runpy.run_path(str(MODELS / "evaluate.py"))["accuracy"]
    right, count = accuracy(MODELS / name, (MODELS / name).with_suffix(".npz"))
    assert count == STATED[name][1]
    assert abs(right - STATED[name][0]) <= 1, "one sample of slack for another processor's rounding"


def test_the_decoders_perplexity_is_what_the_readme_states() -> None:
    """On the play that was held out, by numpy and ONNX Runtime alone but for the tokenizer."""
    tokenizers = pytest.importorskip("tokenizers", reason="text is not installed: pip install 'onnxprune[text]'")
    stated = re.search(
        r"perplexity on The Tempest.*\| ([\d.]+) a token, in rows of 128", (MODELS / "README.md").read_text()
    )
    assert stated is not None
    tokenizer = tokenizers.Tokenizer.from_file(str(MODELS / f"{DECODER}.tokenizer.json"))
    ids = np.array(tokenizer.encode((MODELS / f"{DECODER}.held_out.txt").read_text(encoding="utf-8")).ids)
    session = onnxruntime.InferenceSession(str(MODELS / f"{DECODER}.onnx"))
    losses = []
    for start in range(0, (len(ids) - 1) // 128 * 128, 64 * 128):
        rows = ids[start : min(start + 64 * 128, (len(ids) - 1) // 128 * 128)].reshape(-1, 128)
        feeds = {"input_ids": rows, "attention_mask": np.ones_like(rows)}
        feeds["position_ids"] = np.broadcast_to(np.arange(128), rows.shape).copy()
        for i, kind in [(i, kind) for i in range(6) for kind in ("key", "value")]:
            feeds[f"past_key_values.{i}.{kind}"] = np.zeros((len(rows), 4, 0, 16), np.float32)
        scores = session.run(["logits"], feeds)[0].astype(np.float64).reshape(-1, 512)
        following = ids[start + 1 : start + 1 + rows.size]
        scores -= scores.max(1, keepdims=True)
        losses.append(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), following])
    assert np.exp(np.concatenate(losses).mean()) == pytest.approx(float(stated[1]), abs=0.02)


def test_the_decoder_goes_on_with_its_cache() -> None:
    session = onnxruntime.InferenceSession(str(MODELS / f"{DECODER}.onnx"))
    ids = np.random.default_rng(0).integers(1, 512, (2, 9))

    def run(new: np.ndarray, past: dict[str, np.ndarray], first: int) -> dict[str, np.ndarray]:
        total = np.ones((2, first + new.shape[1]), np.int64)
        places = np.broadcast_to(np.arange(first, total.shape[1]), new.shape).copy()
        feeds = {"input_ids": new, "attention_mask": total, "position_ids": places, **past}
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))

    empty = {i.name: np.zeros((2, 4, 0, 16), np.float32) for i in session.get_inputs() if "past" in i.name}
    whole, first = run(ids, empty, 0), run(ids[:, :5], empty, 0)
    past = {name.replace("present", "past_key_values"): a for name, a in first.items() if name != "logits"}
    assert np.allclose(run(ids[:, 5:], past, 5)["logits"], whole["logits"][:, 5:], atol=1e-4)


def test_the_decoders_held_out_play_is_not_in_its_calibration_text() -> None:
    held_out, seen = (
        (MODELS / f"{DECODER}.{name}.txt").read_text(encoding="utf-8") for name in ("held_out", "calibration")
    )
    lines = {line.strip() for line in held_out.splitlines() if len(line.strip()) > 30}
    assert len(lines) > 1000 and not lines & {line.strip() for line in seen.splitlines()}


@pytest.mark.parametrize("name", [*STATED, f"{DECODER}.onnx"])
def test_the_file_is_small_valid_and_tells_nothing_of_its_builder(name: str) -> None:
    model = onnx.load(str(MODELS / name))
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch is dynamic"
    content = (MODELS / name).read_bytes()
    assert len(content) < (2**21 if DECODER in name else 2**20)
    assert b"/home/" not in content and b".py" not in content


@pytest.mark.parametrize("name", STATED)
def test_held_out_samples_are_not_in_the_training_split(name: str) -> None:
    training, held_out = (np.load(MODELS / file) for file in ("digits_train.npz", name.replace(".onnx", ".npz")))
    seen = {image.tobytes() for image in training["image"]}
    assert not any(image.tobytes() in seen for image in held_out["image"])
