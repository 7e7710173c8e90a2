"""`onnxprune MODEL --data ... --retrain` as a user meets it: what it recovers, refuses, and what survives a kill."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.cli import main
from onnxprune.cli.flags import SETTINGS
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.training import DataSettings, TrainSettings

MODELS = Path(__file__).resolve().parents[2] / "models"
MLP, TRAIN, TEST = MODELS / "digits_mlp.onnx", MODELS / "digits_train.npz", MODELS / "digits_mlp.npz"
RETRAIN = ("--sparsity", 0.9, "--data", TRAIN, "--retrain")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    return dict(json.loads(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object, status: int = 2) -> str:
    """Run, expect one sentence on standard error, the exit status, and nothing new in the folder."""
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert run(*arguments) == status
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("onnxprune: ") and err.count("\n") == 1
    return err


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


# --- what it gives


def test_retraining_recovers_single_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    pruned = result(capsys, MLP, "--sparsity", 0.9, "--dry-run", "--eval-data", TEST)
    flags = ("--epochs", 10, "--lr", 3e-3, "--eval-data", TEST)
    trained = result(capsys, MLP, "-o", out, *RETRAIN, *flags)
    assert trained["metric"]["samples"] == 360 and trained["metric"]["before"] > 0.98
    assert pruned["metric"]["after"] < 0.7
    assert trained["metric"]["after"] > 0.93
    zeros = sum(int((w == 0).sum()) for w in weights(out).values() if w.ndim > 1)
    assert zeros == trained["gone_parameters"] == round(0.9 * trained["prunable_parameters"])
    assert sorted(tmp_path.iterdir()) == [out]  # the checkpoint is gone
    assert run("verify", MLP, out) == 0


@pytest.mark.parametrize("model", ["digits_mlp", "digits_resnet"])
def test_retraining_recovers_a_smaller_graph(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, record, source = tmp_path / "out.onnx", tmp_path / "record.json", MODELS / f"{model}.onnx"
    cut = ("--sparsity", 0.5, "--structure", "channels")
    pruned = result(capsys, source, *cut, "--dry-run", "--eval-data", TEST)
    flags = ("--data", TRAIN, "--retrain", "--epochs", 2, "--eval-data", TEST, "--record", record)
    trained = result(capsys, source, *cut, *flags, "-o", out)
    assert trained["after"]["parameters"] == pruned["after"]["parameters"] < 0.6 * trained["before"]["parameters"]
    assert trained["metric"]["after"] > max(0.95, pruned["metric"]["after"])
    assert 0 < trained["removed_vs_masked"] < 1e-4  # checked where units were removed, before the training
    assert onnx.load(out).graph.input == onnx.load(source).graph.input
    assert onnx.load(out).graph.output == onnx.load(source).graph.output
    assert run("verify", source, out, "--record", record) == 0


def test_iterations_with_dead_units_removed_reach_the_sparsity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, record = tmp_path / "out.onnx", tmp_path / "record.json"
    flags = ("--iterations", 3, "--epochs", 2, "--remove-dead", "--ends", "prune", "--l1", 1e-4, "--record", record)
    found = result(capsys, MLP, "-o", out, *RETRAIN, *flags)
    assert [round(turn["wanted"], 3) for turn in found["retraining"]] == [0.536, 0.785, 0.9]  # 1 - 0.1 ** (t / 3)
    assert found["sparsity"] >= 0.9 - 1e-4
    assert found["dead_units"] > 0 and found["after"]["parameters"] < found["before"]["parameters"]
    assert sum(int((w != 0).sum()) for w in weights(out).values() if w.ndim > 1) <= 0.1 * 50_200 + 1
    assert run("verify", MLP, out, "--record", record) == 0  # the record names what is left of every axis


def test_channels_in_turns_end_where_one_step_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--sparsity", 0.6, "--structure", "channels", "--data", TRAIN, "--retrain", "--epochs", 1)
    found = result(capsys, MLP, "-o", tmp_path / "out.onnx", *flags, "--iterations", 3, "--round-to", "none")
    assert found["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert len(found["retraining"]) == 3


def test_a_threshold_by_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    result(capsys, MLP, "-o", out, "--quality", 1, "--data", TRAIN, "--retrain", "--lr", 1e-9, "--epochs", 1)
    before, after = weights(MLP), weights(out)
    for name in (n for n, w in before.items() if w.ndim > 1 and w.size > 2_000):
        assert np.array_equal(after[name] == 0, np.abs(before[name]) < before[name].std(dtype=np.float64))


def test_without_labels_it_distils_from_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "unlabelled.npz"
    np.savez(data, image=np.load(TRAIN)["image"])
    flags = ("--sparsity", 0.8, "--data", data, "--retrain", "--epochs", 4)
    alone = result(capsys, MLP, "-o", tmp_path / "a.onnx", *flags)
    assert alone["metric"]["name"] == "mse" and alone["metric"]["before"] == 0  # against the original itself
    assert any("held out" in note for note in alone["notes"])
    labelled = result(capsys, MLP, "-o", tmp_path / "b.onnx", *flags, "--eval-data", TEST)
    assert labelled["metric"]["name"] == "accuracy" and labelled["metric"]["after"] > 0.9
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()  # the test data picked nothing
    classes = result(capsys, MLP, "-o", tmp_path / "c.onnx", *flags, "--metric", "agreement")
    assert classes["metric"]["before"] == 1 and classes["metric"]["after"] > 0.9


def test_a_metric_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_metric.py").write_text(
        "def errors(outputs, targets):\n    return float((outputs[0].argmax(1) != targets[0]).sum())\n"
        "errors.higher_is_better = False\n"
    )
    monkeypatch.chdir(tmp_path)
    flags = ("--eval-data", TEST, "--metric", "mine_metric:errors", "--epochs", 1)
    found = result(capsys, MLP, "-o", tmp_path / "o.onnx", *RETRAIN, *flags)
    assert found["metric"]["before"] == 5  # of 360, as models/README.md says
    assert "no function 'other'" in refused(
        capsys, tmp_path, MLP, "-o", tmp_path / "p.onnx", *RETRAIN, "--metric", "mine_metric:other"
    )


def test_conv_and_fc_take_turns_and_what_is_frozen_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = MODELS / "digits_resnet.onnx", tmp_path / "o.onnx"
    flags = ("--sparsity", 0.5, "--data", TRAIN, "--retrain", "--steps", 4)
    result(capsys, model, "-o", out, *flags, "--alternate", "--survivors", "continue", "--ends", "prune")
    result(capsys, model, "-o", out, *flags, "--freeze", "conv", "--batch-norm", "freeze", "--force")
    before, after = weights(model), weights(out)
    kernels = [name for name, array in after.items() if array.ndim == 4]
    assert kernels and all(np.array_equal(after[n][after[n] != 0], before[n][after[n] != 0]) for n in kernels)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    flags = (*RETRAIN, "--steps", 25, "--iterations", 2, "--dropout", 0.2)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(MLP, "-o", tmp_path / f"{name}.onnx", *flags, "--seed", seed) == 0
    a, b, c = ((tmp_path / f"{name}.onnx").read_bytes() for name in "abc")
    assert a == b != c


def test_survivors_go_back_to_a_checkpoint(tmp_path: Path) -> None:
    early = onnx.load(MLP)
    for tensor in early.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(early, tmp_path / "early.onnx")
    flags = ("--survivors", "rewind", "--rewind-to", tmp_path / "early.onnx", "--lr", 1e-9, "--steps", 1)
    assert run(MLP, "-o", tmp_path / "o.onnx", *RETRAIN, *flags) == 0
    before, after = weights(MLP), weights(tmp_path / "o.onnx")
    for name in (n for n, w in before.items() if w.ndim > 1):
        kept = after[name] != 0
        assert np.allclose(after[name][kept], 2 * before[name][kept], rtol=1e-4)


def test_packing_follows_retraining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(capsys, MLP, "-o", tmp_path / "o.onnx", *RETRAIN, "--epochs", 1, "--pack", "--eval-data", TEST)
    assert found["after"]["file_bytes"] < 0.3 * found["before"]["file_bytes"]
    assert found["metric"]["name"] == "accuracy"


def test_every_setting_has_a_flag_and_every_flag_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", "--help-all") == 0
    shown = capsys.readouterr().out
    whole_run = {"seed", "metric"}
    for section, model in (("retrain", TrainSettings), ("reading", DataSettings)):
        assert {s.name for s in SETTINGS if s.section == section} == set(model.model_fields) - whole_run
    for setting in SETTINGS:
        assert setting.flag.argument or f"{setting.spelling} " in shown.replace("/", " ")
        assert setting.field.description
    parameters = [setting.parameter for setting in SETTINGS]
    assert len(set(parameters)) == len(parameters)
    fields = {setting.name for setting in SETTINGS if setting.section == ""}
    assert not {s.parameter for s in SETTINGS if s.section} & (set(Recipe.model_fields) | fields)
    assert fields == set(Recipe.model_fields) - {"retrain_last", "reading"}


def test_pruning_alone_imports_no_torch() -> None:
    code = (
        "import sys, onnxprune\n"
        f"onnxprune.prune({str(MLP)!r}, sparsity=0.5, latency=False)\n"
        "import onnxprune.cli.prune\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- a run that is interrupted


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, out, folder = tmp_path / "whole.onnx", tmp_path / "out.onnx", tmp_path / "out.checkpoint"
    flags = [*RETRAIN, "--iterations", 3, "--epochs", 8, "--remove-dead"]
    assert run(MLP, "-o", whole, *flags) == 0
    command = [sys.executable, "-m", "onnxprune", MLP, "-o", out, *flags]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (folder / "state.safetensors").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    capsys.readouterr()
    assert "--resume" in refused(capsys, tmp_path, MLP, "-o", out, *flags)
    assert "another recipe" in refused(capsys, tmp_path, MLP, "-o", out, *flags, "--l2", 1e-3, "--resume")
    other = tmp_path / "other.npz"
    with np.load(TRAIN) as arrays:
        np.savez(other, image=arrays["image"], label=arrays["label"][::-1])
    changed = [other if part is TRAIN else part for part in flags]
    assert "another training data" in refused(capsys, tmp_path, MLP, "-o", out, *changed, "--resume")
    assert run(MLP, "-o", out, *flags, "--resume") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not folder.exists()


def test_ctrl_c_ends_in_one_sentence_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.onnx", tmp_path / "out.onnx"
    flags = (*RETRAIN, "--epochs", 3)
    assert run(MLP, "-o", whole, *flags) == 0
    loop = importlib.import_module("onnxprune.training.loop")
    original = loop.Run.one_epoch

    def interrupted(self: Any) -> None:
        if self.epoch == 2:
            raise KeyboardInterrupt
        original(self)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "one_epoch", interrupted)
        assert run(MLP, "-o", out, *flags) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("onnxprune: stopped") and "--resume" in said
    assert not out.exists()
    assert run(MLP, "-o", out, *flags, "--resume") == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_named_checkpoint_stays_and_force_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folder = tmp_path / "o.onnx", tmp_path / "state"
    flags = ("-o", out, *RETRAIN, "--steps", 3, "--checkpoint", folder)
    assert run(MLP, *flags) == 0
    first = out.read_bytes()
    assert (folder / "state.safetensors").exists()
    out.unlink()
    assert run(MLP, *flags, "--resume") == 0
    assert out.read_bytes() == first
    out.unlink()
    capsys.readouterr()
    assert "--force" in refused(capsys, tmp_path, MLP, *flags)
    assert run(MLP, *flags, "--force") == 0
    assert out.read_bytes() == first


def test_a_loss_that_is_no_number_keeps_the_best_in_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    assert run(MLP, "-o", out, *RETRAIN, "--optimizer", "sgd", "--lr", 1e30) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "at step" in captured.err and "best.onnx" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.checkpoint"]
    best = tmp_path / "out.checkpoint" / "best.onnx"
    assert all(np.isfinite(array).all() for array in weights(best).values())
    assert run("compare", MLP, best) == 0


# --- what it refuses


def arrays(**changes: Any) -> dict[str, Any]:
    with np.load(TRAIN) as found:
        own = {"image": found["image"][:100], "label": found["label"][:100]}
    return {name: array for name, array in {**own, **changes}.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None, "picture": np.zeros((100, 1, 8, 8), "f4"), "sound": np.zeros(100, "f4")}, "no array 'image'"),
        ({"extra": np.zeros(100, "f4")}, "'extra'"),
        ({"image": np.zeros((100, 1, 9, 8), "f4")}, "shape"),
        ({"image": np.zeros((100, 1, 8, 8), "u1")}, "uint8"),
        ({"label": np.full(100, 10)}, "out of range"),
        ({"label": np.full(100, -1)}, "out of range"),
        ({"label": np.zeros(99, "i8")}, "numbers of samples"),
        ({"image": np.zeros((0, 1, 8, 8), "f4"), "label": np.zeros(0, "i8")}, "empty"),
        ({"image": np.zeros((3, 1, 8, 8), "f4"), "label": np.zeros(3, "i8")}, "too few"),
        ({"image": np.full((100, 1, 8, 8), np.nan, "f4")}, "hold NaN, first in sample 0"),
        ({"image": np.full((100, 1, 8, 8), np.inf, "f4")}, "at step 1"),
    ],
)
def test_data_that_do_not_fit(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, **arrays(**changes))
    flags = ("-o", tmp_path / "o.onnx", "--sparsity", 0.9, "--data", data, "--retrain")
    if message == "at step 1":  # not refused but stopped: the checkpoint holds the best so far
        assert run(MLP, *flags) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "o.onnx").exists()
    else:
        assert message in refused(capsys, tmp_path, MLP, *flags)


def test_evaluation_data_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, **arrays(label=np.full(100, 10)))
    flags = ("-o", tmp_path / "o.onnx", *RETRAIN, "--steps", 1, "--checkpoint", tmp_path.parent / "elsewhere")
    assert "out of range" in refused(capsys, tmp_path, MLP, *flags, "--eval-data", data)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--retrain",), "give --data"),
        (("--data", TRAIN), "--retrain"),
        (("--epochs", 3), "--epochs: only with --retrain"),
        (("--survivors", "reinit"), "--survivors: only with --retrain"),
        (("--resume",), "no run to go on with"),
        (("--data", "nowhere.npz", "--retrain"), "nowhere.npz"),
        (("--data", MLP, "--retrain"), "no kind of data"),
        (("--data", "nomodule:function", "--retrain"), "cannot be imported"),
        ((*RETRAIN, "--epochs", 0), "--epochs"),
        ((*RETRAIN, "--epochs", 3, "--steps", 3), "epochs or steps, not both"),
        ((*RETRAIN, "--lr", 0), "--lr"),
        ((*RETRAIN, "--lr-schedule", "steep"), "--lr-schedule: there is no learning-rate schedule 'steep'"),
        ((*RETRAIN, "--optimizer", "lbfgs"), "--optimizer: there is no optimiser 'lbfgs'"),
        ((*RETRAIN, "--schedule", "steep"), "--schedule: there is no schedule 'steep'"),
        ((*RETRAIN, "--survivors", "none"), "--survivors"),
        ((*RETRAIN, "--survivors", "rewind"), "--rewind-to"),
        ((*RETRAIN, "--initial-sparsity", 0.95), "--initial-sparsity"),
        ((*RETRAIN, "--image-size", "8by8"), "--image-size"),
        ((*RETRAIN, "--metric", "beauty"), "--metric: there is no metric 'beauty'"),
        ((*RETRAIN, "--metric", "nomodule:beauty"), "cannot be imported"),
        ((*RETRAIN, "--loss", "pain"), "--loss: there is no loss 'pain'"),
        ((*RETRAIN, "--shrink", "l3"), "--shrink: there is no penalty 'l3'"),
        ((*RETRAIN, "--loss", "mse"), "real targets"),
        ((*RETRAIN, "--freeze", "layer9*"), "'layer9*' matches no weight"),
        ((*RETRAIN, "--alternate"), "both convolutions and fully connected"),
        ((*RETRAIN, "--alternate", "--structure", "channels"), "--alternate"),
        ((*RETRAIN, "--resume"), "no run to go on with"),
        ((*RETRAIN, "--quality", 1), "--quality"),
    ],
)
def test_flags_that_do_not_fit(
    flags: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = () if "--sparsity" in flags else ("--sparsity", 0.9)
    assert message in refused(capsys, tmp_path, MLP, "-o", tmp_path / "o.onnx", *share, *flags)
