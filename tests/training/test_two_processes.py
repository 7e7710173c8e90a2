"""`accelerate launch` with two CPU processes gives what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
from training_models import blob_data, mlp, prune_and_train, random_masks, weights

from onnxprune.recipe.recipe import make_recipe
from onnxprune.training import TrainSettings, retrain

SETTINGS = TrainSettings(epochs=4, batch_size=31, learning_rate=1e-2, clip=1.0, device="cpu")  # 31: uneven shards

PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}, {here!r} + "/.."]
import onnx_ir as ir
import torch
from test_two_processes import train_all
models = train_all(Path({folder!r}) / "state")
assert torch.distributed.get_world_size() == 2
if torch.distributed.get_rank() == 0:
    for number, model in enumerate(models):
        ir.save(model, Path({folder!r}) / f"{{number}}.onnx")
"""


def train_all(folder: Path | None) -> list[ir.Model]:
    """One training with masks, and one iterated run with checkpoints."""
    masks = random_masks(mlp())
    single = retrain(mlp(), blob_data(), SETTINGS, masks=masks).model
    recipe = make_recipe(sparsity=0.5, iterations=2, retrain=SETTINGS)
    turns = prune_and_train(mlp(), recipe, blob_data(), lambda model, share, step: (model, masks), folder=folder)
    return [single, turns.model]


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(here=str(Path(__file__).parent), folder=str(tmp_path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # --multi_gpu only means "several processes"; with --cpu, accelerate would start a single one.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    defaults = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, *defaults, str(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for number, model in enumerate(train_all(None)):
        together = weights(ir.load(tmp_path / f"{number}.onnx"))
        for name, array in weights(model).items():
            assert np.allclose(array, together[name], atol=1e-4), name
            assert np.array_equal(array != 0, together[name] != 0)
