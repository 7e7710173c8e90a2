"""torchvision beside a build of torch that its compiled operators were not made for, as that for CPUs alone.

Its import then ends in "operator torchvision::nms does not exist", though no export of a network needs that operator.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

_DECLARED = """
import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def declarations() -> str:
    """Code that declares the operators, to be run before torchvision is imported; "" where it is not needed."""
    if importlib.util.find_spec("torchvision") is None:
        return ""
    tried = subprocess.run([sys.executable, "-W", "ignore", "-c", "import torchvision"], capture_output=True, text=True)
    return _DECLARED if tried.returncode != 0 and "torchvision::nms" in tried.stderr else ""


def declaring(variables: dict[str, str], folder: Path) -> dict[str, str]:
    """These variables, with which every Python runs `declarations` first; they are kept in a new folder in this one."""
    first = folder / "first"
    first.mkdir()
    (first / "sitecustomize.py").write_text(declarations(), encoding="utf-8")
    paths = [str(first), *filter(None, [variables.get("PYTHONPATH")])]
    return {**variables, "PYTHONPATH": os.pathsep.join(paths)}
