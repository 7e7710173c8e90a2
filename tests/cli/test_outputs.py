"""No file that a run reads is ever written to, and no file is replaced without --force, whichever flag names it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import refused, run
from model_io_models import mlp, stored_external

X = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    stored_external(tmp_path, mlp(width=16))
    for name in ("calibration.npz", "eval.npz"):
        np.savez(tmp_path / name, x=X, label=np.arange(16) % 4)
    (tmp_path / "recipe.toml").write_text("sparsity = 0.5\nmodel = 'model.onnx'\n")
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "part.npz", x=X, label=np.arange(16) % 4)
    os.link(tmp_path / "eval.npz", tmp_path / "hard.npz")
    (tmp_path / "link.bin").symlink_to("weights.bin")
    return tmp_path


READ = ["model.onnx", "weights.bin", "calibration.npz", "eval.npz", "recipe.toml", "hard.npz", "link.bin"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("flag", ["--output", "--record", "--report", "--save-recipe"])
@pytest.mark.parametrize("name", READ)
def test_what_is_read_stays(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, flag: str, force: bool
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    flags = ["--calibration", "calibration.npz", "--eval-data", "eval.npz", flag, name, *["--force"] * force]
    sentence = refused(capsys, folder, "run", "recipe.toml", *flags)
    assert "which is never changed" in sentence and name in sentence
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_file_of_a_folder_that_is_read_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["model.onnx", "-s", 0.5, "--retrain", "--data", "data", "--record", "data/part.npz", "--force"]
    assert "a file of the data of --data" in refused(capsys, folder, *flags)


@pytest.mark.parametrize("flag", ["--record", "--report", "--save-recipe"])
def test_no_file_is_replaced_unasked(folder: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    (folder / "notes.txt").write_text("mine")
    arguments = ["model.onnx", "-o", "out.onnx", "-s", 0.5, flag, "notes.txt"]
    assert "use --force" in refused(capsys, folder, *arguments)
    assert (folder / "notes.txt").read_text() == "mine" and not (folder / "out.onnx").exists()
    assert run(*arguments, "--force") == 0
    assert (folder / "notes.txt").read_text() != "mine"


@pytest.mark.parametrize("flags", [["--data", "mine:rows", "--retrain"], ["--criterion", "mine:rows"]], ids=str)
def test_the_module_of_a_function_stays(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    (folder / "mine.py").write_text("def rows(*_):\n    return []\n")
    sentence = refused(capsys, folder, "model.onnx", "-s", 0.5, *flags, "--record", "mine.py", "--force")
    assert "the file of mine:rows itself" in sentence


@pytest.mark.parametrize("flag", ["--output", "--record", "--report", "--save-recipe"])
def test_a_pipe_or_device_is_never_replaced(folder: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    os.mkfifo(folder / "pipe")
    assert "never replaced" in refused(capsys, folder, "model.onnx", "-s", 0.5, flag, "pipe", "--force")
    assert stat.S_ISFIFO((folder / "pipe").lstat().st_mode)


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "sub/../fd/{}"])
@pytest.mark.parametrize("flag", ["--output", "--record", "--report", "--save-recipe"])
def test_a_name_among_the_devices_is_never_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str, name: str
) -> None:
    """/dev/stdout leads to a plain file where the output goes to one; the link itself must stay."""
    (folder / "sub").mkdir()
    (folder / "fd").symlink_to("/dev/fd")
    with (folder / "plain.txt").open("w") as plain:
        path = name.format(plain.fileno())
        assert "never replaced" in refused(capsys, folder, "model.onnx", "-s", 0.5, flag, path, "--force")
    assert (folder / "plain.txt").read_text() == ""


@pytest.mark.parametrize("flag", ["--output", "--record", "--report", "--save-recipe"])
def test_a_link_that_leads_nowhere_is_a_file_that_exists(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    (folder / "link").symlink_to("nowhere")
    assert run("model.onnx", "-s", 0.5, flag, "link") == 2
    assert "use --force" in capsys.readouterr().err
    assert os.readlink("link") == "nowhere" and not os.path.lexists("nowhere")


def test_a_plot_replaces_no_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plot.png").write_bytes(b"mine")
    arguments = ["sensitivity", "model.onnx", "--calibration", "calibration.npz", "--plot"]
    assert "use --force" in refused(capsys, folder, *arguments, "plot.png")
    (folder / "link.png").symlink_to("calibration.npz")
    assert "never changed" in refused(capsys, folder, *arguments, "link.png", "--force")


@pytest.mark.parametrize("arguments", [(".", "-s", 0.5), ("unpack", "data"), ("..", "-s", 0.5), ("/", "-s", 0.5)])
def test_a_folder_is_no_model(folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...]) -> None:
    assert "is a folder" in refused(capsys, folder, *arguments)


def test_the_state_of_a_run_removes_no_file_of_the_user(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = ["-s", 0.5, "--retrain", "--data", "data", "--steps", 1, "--checkpoint"]
    (folder / "state").mkdir()
    for name in ("best.onnx", "iteration-3.onnx"):
        (folder / "state" / name).write_bytes((folder / "model.onnx").read_bytes())
        assert "name another folder" in refused(capsys, folder, "model.onnx", *training, "state", "--force")
        (folder / "state" / name).unlink()
    (folder / "state" / "run.json").write_text("{}")
    (folder / "state" / "best.onnx").write_bytes(mlp(width=16).SerializeToString())
    sentence = refused(capsys, folder, "state/best.onnx", *training, "state", "--force", "-o", "o.onnx")
    assert "lies in the folder 'state'" in sentence


@pytest.mark.parametrize("name", ["first.onnx", "first.bin"])
@pytest.mark.parametrize("flag", ["--output", "--record", "--report", "--save-recipe"])
def test_the_weights_to_go_back_to_stay(folder: Path, capsys: pytest.CaptureFixture[str], flag: str, name: str) -> None:
    onnx.save(mlp(width=16), folder / "first.onnx", save_as_external_data=True, location="first.bin", size_threshold=0)
    training = ["-s", 0.5, "--retrain", "--data", "data", "--survivors", "rewind", "--rewind-to", "first.onnx"]
    sentence = refused(capsys, folder, "model.onnx", *training, flag, name, "--force")
    assert "the model of --rewind-to" in sentence and "never changed" in sentence


def test_a_recipe_cannot_hold_a_name_that_is_no_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"odd\xff.onnx")
    (folder / name).write_bytes((folder / "model.onnx").read_bytes())
    sentence = refused(capsys, folder, name, "-s", 0.5, "-o", "o.onnx", "--save-recipe", "r.toml")
    assert "rename it" in sentence
