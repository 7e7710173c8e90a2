"""The checkpoint of the loop: the model after the last iteration, and beside it all that was done to get there.

Trace and history stand in the file of the state, not in the model: a resumed run ends with the same record. Torch is
imported where a state is read or written, since only runs that train keep one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import ModelError, RecipeError
from onnxprune.pipeline.run_folder import is_main
from onnxprune.pipeline.step import Iteration, State
from onnxprune.pipeline.trace import Trace
from onnxprune.recipe.recipe import Recipe


def fingerprint(model: ir.Model, recipe: Recipe) -> str:
    """Return a hash of what a checkpoint depends on: the recipe and the model's weights."""
    digest = hashlib.sha256(recipe.model_dump_json().encode())
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(name.encode())
        if value.const_value is not None:
            digest.update(value.const_value.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Store:
    """Where the loop keeps its state.

    Attributes:
        folder: The folder.
        mark: The `fingerprint` of the run.
    """

    folder: Path
    mark: str

    @property
    def training(self) -> Path:
        """The file of the training under way."""
        return self.folder / "training.safetensors"

    def save(self, state: State) -> None:
        """Write the model, then the state that names it: at any moment the state on the disk names a whole model.

        Raises:
            ModelError: The disk is full, or the file system refused.
        """
        if not is_main():
            return
        import torch

        from onnxprune.training.checkpoint import Checkpoint, save_checkpoint, save_model

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"iteration-{state.done}.onnx"
        files = save_model(self.folder / name, state.model)
        tensors = {f"mask.{n}": torch.from_numpy(np.ascontiguousarray(m)) for n, m in state.masks.items()}
        tensors |= {f"rewind.{n}": torch.from_numpy(np.array(a)) for n, a in state.rewind.items()}
        plain = {
            "mark": self.mark,
            "model": name,
            "files": files,
            "done": state.done,
            "trace": state.trace.plain(),
            "history": [asdict(iteration) for iteration in state.history],
        }
        save_checkpoint(self.folder / "state.safetensors", Checkpoint(tensors, plain))
        for old in self.folder.glob("iteration-*.onnx*"):
            if not old.name.startswith(name):
                old.unlink(missing_ok=True)

    def load(self, state: State) -> State:
        """Return the state that the folder holds; the given one where it holds none.

        Raises:
            RecipeError: It is that of another run.
            ModelError, DataError: A file is damaged.
        """
        from onnxprune.training.checkpoint import ensure_whole, load_checkpoint

        saved = load_checkpoint(self.folder / "state.safetensors")
        if saved is None:
            return state
        if saved.state["mark"] != self.mark:
            raise RecipeError(f"'{self.folder}' holds the checkpoint of a run with another model or other settings.")
        ensure_whole(self.folder, saved.state["files"])
        path = self.folder / saved.state["model"]
        try:
            model = ir.load(path)
        except Exception as error:
            raise ModelError(f"The checkpoint's model '{path}' cannot be read: {error}") from error
        arrays: dict[str, dict[str, npt.NDArray[Any]]] = {"mask": {}, "rewind": {}}
        for name, tensor in saved.tensors.items():
            part, rest = name.split(".", 1)
            arrays[part][rest] = tensor.numpy()
        return replace(
            state,
            model=model,
            trace=Trace.of_plain(saved.state["trace"]),
            masks=arrays["mask"],
            rewind=arrays["rewind"],
            done=saved.state["done"],
            history=tuple(map(_iteration_of, saved.state["history"])),
        )


def _iteration_of(plain: Mapping[str, Any]) -> Iteration:
    from onnxprune.training.task import EpochResult, TrainResult

    trainings = tuple(
        TrainResult(**{**training, "history": tuple(EpochResult(**epoch) for epoch in training["history"])})
        for training in plain["trainings"]
    )
    return Iteration(plain["iteration"], plain["wanted"], plain["sparsity"], trainings)
