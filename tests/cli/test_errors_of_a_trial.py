"""What a new user gets wrong in the first minutes, each line as it was typed: one sentence, status 2, nothing written.

`python tests/cli/test_errors_of_a_trial.py` prints the lines with what they say.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from command_line import refused
from small_models import conv_net

from onnxprune import model_io

ERRORS: dict[str, str] = {
    "missing.onnx -s 0.5": "the model 'missing.onnx' does not exist",
    "net.onnx -s 1.5": "--sparsity: it has to be less than 1 (not '1.5')",
    "net.onnx -s 50%%": "--sparsity: it has to be a number (not '50%%')",
    "net.onnx -s half": "--sparsity: it has to be a number (not 'half')",
    "net.onnx -s": "-s needs a value",
    "net.onnx --structure chanels": "--structure: there is no structure 'chanels': choose weights, N:M, ",
    "net.onnx --structur channels": "there is no flag --structur: is --structure",
    "net.onnx -o net.onnx -s 0.5": "--output 'net.onnx' is the model itself, which is never changed",
    "net.onnx -s 0.5 --target-latency 0.5x": "--target-latency: --sparsity says already how much goes",
    "net.onnx --target-latency 5": "--target-latency: it has to be less than 1 (not '5')",
    "net.onnx -s 0.5 --iterations x": "--iterations: it has to be a whole number (not 'x')",
    "net.onnx -s 0.5 --criterion magnitudes": "--criterion: there is no criterion 'magnitudes': choose one of ",
    "net.onnx -s 0.5 --ends both": "--ends: it has to be 'auto', 'prune' or 'keep' (not 'both')",
    "net.onnx -s 0.5 --allow-inexact=yes": "--allow-inexact takes no value: write it alone",
    "net.onnx -s 0.5 --calibration missing.npz": "No data at 'missing.npz': there is no such file",
    "net.onnx -s 0.5 --max-drop 1%": "--max-drop: --sparsity says already how much goes",
    "net.onnx --max-drop 1%": "--max-drop needs labelled data to measure the metric on: give --eval-data",
    "net.onnx -s 0.5 --exclude nothing*": "--exclude 'nothing*' matches no weight or node",
    "net.onnx -s 0.5 --retrain": "--retrain needs the data to train on: give --data",
    "net.onnx -s 0.5 --epochs 3": "--epochs: only with --retrain",
    "net.onnx -s 0.5 --require speed>2": "--require: there is no figure 'speed'",
    "text.onnx -s 0.5": "'text.onnx' is not a protobuf",
    "empty.onnx": "'empty.onnx' is empty",
    "cut.onnx -s 0.5": "'cut.onnx' is truncated",
    "prune net.onnx -s 0.5 -o nowhere/out.onnx": "--output 'nowhere/out.onnx' cannot be written: its folder does not",
    "net.onnx empty.onnx -s 0.5 -o out.onnx": "out.onnx",
    "run missing.toml": "the recipe 'missing.toml' cannot be read",
    "run text.toml": "the recipe 'text.toml' is no TOML",
    "verify net.onnx missing.onnx": "'missing.onnx' does not exist",
    "verify net.onnx": "PRUNED is missing",
    "compare net.onnx text.onnx": "'text.onnx' is not a protobuf",
    "inspect folder": "'folder' is a folder: give the .onnx file in it",
    "unpack net.onnx -o x.onnx": "'net.onnx' holds no packed weights and no tiles: there is nothing to unpack",
    "sweep net.onnx -s 0.3,half": "--sparsity",
    "sweep net.onnx -s 0.3,0.5 --pick fast": "--pick: a limit looks like 'latency<=0.6'",
    "sensitivity net.onnx --levels a,b": "--levels: shares between 0 and 1, such as 0.3,0.5,0.8 (not 'a,b')",
}
"""By line: what its sentence begins with, or holds."""


def lay_out(folder: Path) -> None:
    """The files that the lines name."""
    model_io.save(conv_net(16), folder / "net.onnx")
    (folder / "text.onnx").write_text("no model")
    (folder / "text.toml").write_text("no recipe")
    (folder / "empty.onnx").write_bytes(b"")
    whole = (folder / "net.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "folder").mkdir()


@pytest.mark.parametrize("line", ERRORS)
def test_an_error_is_one_sentence(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    told = refused(capsys, tmp_path, *shlex.split(line))
    assert ERRORS[line] in told and len(told) < 600


def main() -> None:
    """Type every line in a shell of its own, and print what it says."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        for line in ERRORS:
            command = [sys.executable, "-m", "onnxprune", *shlex.split(line)]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            print(f"$ onnxprune {line}\n{done.stdout}{done.stderr}[exit {done.returncode}]\n")


if __name__ == "__main__":
    main()
