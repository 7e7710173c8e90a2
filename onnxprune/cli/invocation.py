"""What a run is given beside its recipe: the model, data, where output goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from onnxprune.recipe.fields import is_synthetic
from onnxprune.recipe.file import PRESETS
from onnxprune.recipe.flag import Flag, flag_name

_DATA, _RUN = Flag("Data"), Flag("Run")

IN_FOLDER = "*"
"""The name of an output that is to be called as its model, in the folder that was named."""


def _output(text: Any) -> Any:
    """A name with a slash at its end is that of a folder, whether it exists or not."""
    slash = isinstance(text, str) and text.endswith(("/", os.sep))
    return Path(text, IN_FOLDER) if slash else text


class Invocation(BaseModel):
    """Everything of a command line that is no setting of the recipe; each field is a flag of ``prune``."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    models: Annotated[
        tuple[Path, ...], Flag("Run", "The .onnx file, or several; never changed.", name="model", argument=True)
    ] = Field(description="the .onnx file; several go into the folder of --output; - is standard input")
    preset: Annotated[str | None, Flag("How much", "Or settings for an aim: smallest, fastest, safe.")] = Field(
        None, description=f"settings for an aim: {', '.join(PRESETS)}; flags win over it"
    )
    output: Annotated[
        Path | None, BeforeValidator(_output), Flag("Run", "Where to write [MODEL.pruned.onnx].", short="-o")
    ] = Field(
        None,
        description="file or folder to write into [MODEL.pruned.onnx]; out/ is a folder that is made where it is "
        "missing; - is standard output",
    )
    calibration: Annotated[Path | None, Flag("Data", "Inputs to look at: better choices, recovery.")] = Field(
        None,
        description="inputs (in the forms of --data; label where there are labels) for criteria that look at data, for "
        "--allocation sensitivity and --quantize int8; they turn on --recover, which changes the weights that are "
        "left; or the word synthetic: inputs are made up from the model, which is second best",
    )
    eval_data: Annotated[Path | None, Flag("Data", "Labelled inputs to measure the metric on.")] = Field(
        None, description="labelled inputs to measure the metric on, in the forms of --data"
    )
    inputs: Annotated[Path | None, _DATA] = Field(
        None,
        description="inputs that the model runs with (.npz, one array for each), where none are found or better ones "
        "are at hand: shapes are found and the result is verified on them",
    )
    custom_ops: Annotated[tuple[Path, ...], _RUN] = Field(
        (), description="library of custom operators that the model needs"
    )
    metric: Annotated[str | None, _DATA] = Field(
        None,
        description="what is measured: accuracy, top5, mse, agreement (with the original), perplexity, cosine, "
        "spearman or module:function; else what fits the data",
    )
    data: Annotated[Path | None, Flag("Retrain", "What to train on: .npz, .csv, folder, module:fn.")] = Field(
        None,
        description="what to train on: .npz with arrays named as the inputs, and label; .csv; .txt or .jsonl with "
        "--tokenizer; a folder of images by class; or module:function",
    )
    checkpoint: Annotated[Path | None, Flag("Run", shown="OUTPUT.checkpoint")] = Field(
        None,
        description="folder for the state of the run: kept by all that retrain, by models above 512 MiB with "
        "--calibration, and by others where it is named; the one beside the output is removed at the end",
    )
    resume: Annotated[bool, _RUN] = Field(
        False, description="go on with a run that was interrupted, from its checkpoint"
    )
    record: Annotated[Path | None, _RUN] = Field(None, description="write what was done as JSON")
    report: Annotated[Path | None, Flag("Run", "Write one HTML page about the run.")] = Field(
        None, description="write one HTML page about the run"
    )
    save_recipe: Annotated[Path | None, _RUN] = Field(None, description="write these flags as a file for onnxprune run")
    json_output: Annotated[bool, Flag("Run", name="json")] = Field(False, description="print the result as JSON alone")
    verification: Annotated[bool, Flag("Run", name="verify")] = Field(
        True, description="run the result in ONNX Runtime and prove the cut; without, the file is written unproved"
    )
    jobs: Annotated[int | None, _RUN] = Field(
        None,
        description="tries at a time, in processes of their own: of a search for --max-drop, layers of a scan, runs of "
        "a sweep; -1 is one a core; the result is the same",
    )
    dry_run: Annotated[bool, _RUN] = Field(False, description="do and measure everything, write no model")
    force: Annotated[bool, Flag("Run", "Replace an existing output.")] = Field(
        False, description="replace an existing output"
    )
    called: Mapping[Path, str] = Field({}, description="files that are told of under another name: streams")

    @property
    def model(self) -> Path:
        """The one model of a run."""
        (model,) = self.models
        return model

    def name_of(self, path: Path) -> str:
        """What a file is called where a run is told of."""
        return self.called.get(path, str(path))

    @property
    def target(self) -> Path | None:
        """Where the pruned model goes; None where none is written."""
        return None if self.dry_run else self.named_target

    @property
    def named_target(self) -> Path:
        """Where the pruned model goes, or would go."""
        return self.output or self.model.with_name(f"{self.model.stem}.pruned.onnx")

    @property
    def reads(self) -> dict[str, Path | None]:
        """The files and folders that the run reads, by what messages call them."""
        data = ("calibration", "eval_data", "inputs", "data")
        names = {f"the data of {flag_name(Invocation, name)}": getattr(self, name) for name in data}
        libraries = {f"the library '{path.name}' of --custom-ops": path for path in self.custom_ops}
        paths = {what: path for what, path in names.items() if not is_synthetic(path)}
        return {"the model": self.model, **paths, **libraries}

    @property
    def writes_beside(self) -> dict[str, Path | None]:
        """What is written beside the model, by flag."""
        return {"--record": self.record, "--report": self.report, "--save-recipe": self.save_recipe}
