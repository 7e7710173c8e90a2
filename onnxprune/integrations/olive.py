"""A pass for Microsoft's Olive: prune an ONNX model between Olive's own passes. Needs ``pip install olive-ai``.

    python -m onnxprune.integrations.olive > olive_config.json
    olive run --config workflow.json --package-config olive_config.json

with ``{"type": "OnnxPrune", "sparsity": 0.5, "structure": "channels"}`` among the passes of the workflow. The first
command writes Olive's own list of passes and this one, since ``--package-config`` replaces the list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from olive.common.config_utils import ParamCategory
from olive.exception import OlivePassError
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.search.search_parameter import Categorical
from pydantic.fields import FieldInfo

from onnxprune.errors import OnnxPruneError
from onnxprune.pipeline.run import prune, save
from onnxprune.recipe.recipe import Recipe, make_recipe

MODULE: Mapping[str, Any] = {
    "module_path": "onnxprune.integrations.olive.OnnxPrune",
    "supported_providers": ["*"],
    "supported_accelerators": ["*"],
    "supported_precisions": ["*"],
    "dataset": "dataset_optional",
}
"""What Olive's package configuration says of the pass."""

_FILES = {
    "data": "what to retrain on: .npz, .csv, a folder of images by class, or module:function",
    "eval_data": "labelled inputs to measure the metric on",
    "calibration": "inputs (.npz) for quantize int8, by default those of eval_data",
}
_SEARCH = {"sparsity": Categorical([0.25, 0.5, 0.75])}


class OnnxPrune(Pass):  # type: ignore[misc]
    """Prune an ONNX model with onnxprune; every field of `onnxprune.Recipe` is a parameter."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        fields = {name: _parameter(name, field) for name, field in Recipe.model_fields.items()}
        files = {
            name: PassConfigParam(type_=str | None, default_value=None, category=ParamCategory.DATA, description=text)
            for name, text in _FILES.items()
        }
        metric = PassConfigParam(type_=str | None, default_value=None, description="accuracy, top5, mse, ...")
        return {**fields, **files, "metric": metric}

    def _run_for_config(self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str) -> Any:
        path = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        chosen = {name: value for name in config.model_fields if (value := getattr(config, name)) is not None}
        try:
            recipe = make_recipe(**{name: value for name, value in chosen.items() if name in Recipe.model_fields})
            rest = {name: value for name, value in chosen.items() if name not in Recipe.model_fields}
            result = prune(model.model_path, recipe, **rest)
            save(result, path, force=True)
        except OnnxPruneError as error:
            raise OlivePassError(str(error)) from error
        folder = Path(path).parent
        external = len(list(folder.glob("*.data"))) > 0
        made = {"model_path": str(folder), "onnx_file_name": Path(path).name} if external else {"model_path": path}
        return ONNXModelHandler(**made, model_attributes={"onnxprune": result.figures})


def _parameter(name: str, field: FieldInfo) -> PassConfigParam:
    """The field as Olive declares one; None, where nothing is said, leaves the recipe its own default."""
    return PassConfigParam(
        type_=Any if field.annotation is None else field.annotation | None,
        default_value=None,
        search_defaults=_SEARCH.get(name),
        description=field.description,
    )


def package_config() -> dict[str, Any]:
    """Olive's own package configuration with this pass added: what ``--package-config`` takes."""
    content: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    content["passes"]["OnnxPrune"] = dict(MODULE)
    return content


if __name__ == "__main__":
    json.dump(package_config(), sys.stdout, indent=1)
