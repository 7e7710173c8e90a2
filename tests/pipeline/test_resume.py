"""A run without training that was interrupted: it goes on where it stopped, and ends with the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import merged
import numpy as np
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import DataError, RecipeError
from onnxprune.model_io.journal import Journal
from onnxprune.pipeline import step
from onnxprune.recovery import reconstruct

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
MLP = MODELS / "digits_mlp.onnx"
DIGITS = dict(np.load(MODELS / "digits_train.npz"))
SOME: dict[str, np.ndarray] = {name: array[:256] for name, array in DIGITS.items() if name != "label"}
CASES: dict[str, dict[str, Any]] = {
    "weights": {"sparsity": 0.7},
    "2:4 by Wanda, then SparseGPT": {"structure": "2:4", "criterion": "wanda", "recover": ["sparsegpt"]},
    "units in two steps": {"structure": "channels", "sparsity": 0.5, "iterations": 2},
    "two methods": {"sparsity": 0.6, "recover": ["obc", "bias"]},
    "weights, shared out by a scan": {"sparsity": 0.6, "allocation": "sensitivity"},
    "units, tiles and blocks that compete": {"structure": "joint", "sparsity": 0.6},
    "with units that are judged by the model": {"structure": "channels", "sparsity": 0.4, "recover": ["moments"]},
}


class Stop(BaseException):
    """The end of a process, as far as the run can tell."""


def pruned(folder: Path, settings: Mapping[str, Any], *, resume: bool = False, data: Any = None) -> Any:
    inputs = SOME if data is None else data
    return onnxprune.prune(
        MLP, calibration=inputs, checkpoint=folder, resume=resume, latency=False, **settings
    )  # fmt: skip


def saved(result: Any, path: Path) -> bytes:
    onnxprune.save(result, path, force=True)
    return path.read_bytes()


def stop_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Let a run keep so many parts, and end it at the next."""
    written, real = [0], Journal.write

    def write(self: Journal, *arguments: Any) -> None:
        if self.folder is not None:
            if written[0] == parts:
                raise Stop
            written[0] += 1
        real(self, *arguments)

    monkeypatch.setattr(Journal, "write", write)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers that are fitted from now on."""
    fitted: list[str] = []
    real = reconstruct.propose

    def propose(name: str, layer: Any, folds: Any) -> Any:
        fitted.append(layer.linear.name)
        return real(name, layer, folds)

    monkeypatch.setattr(reconstruct, "propose", propose)
    return fitted


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_an_interrupted_run_ends_with_the_same_bytes(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fitted = counted(patch)
        whole = pruned(tmp_path / "whole", settings)
        first = len(fitted)
    parts = len(list((tmp_path / "whole").glob("part-*")))
    assert parts > 1
    expected = saved(whole, tmp_path / "whole.onnx")
    for stop in range(1, parts):
        folder = tmp_path / str(stop)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, stop)
            pruned(folder, settings)
        with monkeypatch.context() as patch:
            fitted = counted(patch)
            resumed = pruned(folder, settings, resume=True)
        assert saved(resumed, tmp_path / "resumed.onnx") == expected
        assert resumed.steps == whole.steps
        before = 5 if settings.get("structure") == "joint" else 2  # the first layer: what goes, and one error
        assert len(fitted) < first or stop <= before


def test_a_run_that_is_whole_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CASES["weights"]
    expected = saved(pruned(tmp_path / "state", settings), tmp_path / "first.onnx")
    fitted = counted(monkeypatch)
    assert saved(pruned(tmp_path / "state", settings, resume=True), tmp_path / "second.onnx") == expected
    assert fitted == []


@pytest.mark.parametrize("settings", [
    {"structure": "layers", "sparsity": 0.4, "interface": "narrow", "recover": "no"},
    {"structure": "weights", "sparsity": 0.6, "allocation": "sensitivity", "recover": "no"},
], ids=["layers", "a scan"])  # fmt: skip
def test_what_goes_is_not_chosen_again(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = merged.feeds(3, heads=(merged.HEADS,) * 3)

    def run(*, resume: bool) -> Any:
        return onnxprune.prune(merged.decoder(3), calibration=samples, checkpoint=tmp_path / "state", resume=resume,
                               latency=False, **settings)  # fmt: skip

    first = run(resume=False)
    with monkeypatch.context() as patch:
        patch.setattr(step, "choose", lambda *_, **__: pytest.fail("what goes was chosen again"))
        second = run(resume=True)
    assert saved(second, tmp_path / "second.onnx") == saved(first, tmp_path / "first.onnx")
    assert second.blocks == first.blocks and second.steps == first.steps
    assert first.blocks or first.steps[0]["sensitivity"]


def test_units_tiles_and_blocks_that_compete_are_not_divided_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"structure": "joint", "sparsity": 0.6}
    first = saved(pruned(tmp_path / "state", settings), tmp_path / "first.onnx")
    for name in ("divided", "planned"):
        monkeypatch.setattr(step.Joint, name, lambda *_: pytest.fail("what goes was decided again"))
    assert saved(pruned(tmp_path / "state", settings, resume=True), tmp_path / "second.onnx") == first


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_part_is_told_of(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    pruned(tmp_path, CASES["weights"])
    for path in tmp_path.glob("part-*"):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="is damaged or cannot be read"):
        pruned(tmp_path, CASES["weights"], resume=True)


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    pruned(tmp_path, CASES["weights"])
    with pytest.raises(RecipeError, match="another recipe"):
        pruned(tmp_path, {"sparsity": 0.6}, resume=True)
    others = {name: array[:100] for name, array in SOME.items()}
    with pytest.raises(RecipeError, match="another calibration data"):
        pruned(tmp_path, CASES["weights"], resume=True, data=others)


def test_a_search_keeps_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--checkpoint keeps the state of one run"):
        pruned(tmp_path, {"structure": "channels", "target_size": 0.5})


KILLED = """
import os, signal, sys
from onnxprune.model_io import journal
from onnxprune.cli import main
left = [int(sys.argv.pop(1))]
real = journal.sync
def sync(file):
    left[0] -= 1
    if not left[0]:
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)  # in the middle of a part: it is there under no name of its own yet
    real(file)
journal.sync = sync
main(sys.argv[1:])
"""


def test_the_command_line_goes_on_after_a_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "some.npz", **SOME)  # type: ignore[arg-type]
    flags = [str(MLP), "--sparsity", "0.7", "--calibration", str(tmp_path / "some.npz")]
    whole, out = tmp_path / "whole.onnx", tmp_path / "out.onnx"
    with pytest.raises(SystemExit):
        main([*flags, "-o", str(whole)])
    assert not (tmp_path / "whole.checkpoint").exists()  # such a small model keeps none by itself
    state = ["--checkpoint", str(tmp_path / "state"), "-o", str(out)]
    ended = subprocess.run([sys.executable, "-c", KILLED, "4", *flags, *state], cwd=ROOT, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists() and len(list((tmp_path / "state").glob("part-*"))) == 3
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([*flags, *state])
    assert left.value.code == 2 and "--resume goes on with it" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main([*flags, *state, "--resume", "--json"])
    assert not left.value.code
    assert json.loads(capsys.readouterr().out)["output"] == str(out)
    assert out.read_bytes() == whole.read_bytes()
