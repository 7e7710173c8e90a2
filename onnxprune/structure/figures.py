"""What work takes in ONNX Runtime on one thread of a processor: built-in figures, or those of this machine.

`onnxprune tune` measures them (runtime/tune.py) and keeps them in the user's cache, where `figures_in_use` finds them.
A node takes, by its kind of work,

    a x multiply-adds + b x numbers read + c x numbers written + d x weights + e        nanoseconds

with what `costs.work_of` counts: channels of convolutions are whole blocks there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from onnxprune.errors import ModelError
from onnxprune.structure.machine import cache_folder, processor

Kind = Literal["few", "pointwise", "kernel", "depthwise", "product", "pool", "elementwise", "norm", "move", "pick"]
"""Convolutions of fewer input channels than a block, of one place, of larger kernels and by depth; products of
matrices; pools; what treats each number alone; normalisations; copies of rows and of single numbers."""

KINDS: tuple[Kind, ...] = get_args(Kind)

Work = tuple[float, float, float, float, float]
"""Multiply-adds, numbers read, numbers written, weights, nodes."""


@dataclass(frozen=True)
class Figures:
    """What work takes.

    Attributes:
        kinds: Nanoseconds of a multiply-add, of a number read, a number written, a weight and a node, by kind of work.
        block: Channels that a convolution takes at once.
        step: Columns that a product of matrices takes at once.
        processor: Of which machine; "" where these are built in.
        onnxruntime: The version that they were measured with.
    """

    kinds: Mapping[Kind, Work]
    block: int = 16
    step: int = 8
    processor: str = ""
    onnxruntime: str = ""

    def nanoseconds(self, kind: Kind, work: Work) -> float:
        """Return what work takes."""
        return sum(each * amount for each, amount in zip(self.kinds[kind], work, strict=True))

    def save(self, path: Path) -> None:
        """Write the figures."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


FORMAT = "onnxprune-figures/1"

BUILT_IN = Figures(
    {
        "few": (0.0175, 0.02, 0.22, 5.0, 500.0),
        "pointwise": (0.0171, 0.0, 0.03, 0.13, 5000.0),
        "kernel": (0.0168, 0.055, 0.0, 0.16, 6000.0),
        "depthwise": (0.0187, 0.05, 0.16, 0.3, 4500.0),
        "product": (0.0152, 0.38, 0.5, 0.22, 3700.0),
        "pool": (0.0, 0.04, 0.15, 0.0, 500.0),
        "elementwise": (0.0, 0.255, 0.255, 0.0, 3000.0),
        "norm": (0.0, 0.24, 0.24, 0.0, 7500.0),
        "move": (0.0, 0.0, 0.25, 0.0, 800.0),
        "pick": (0.0, 0.0, 7.05, 0.0, 1300.0),
    }
)
"""Of an AMD EPYC with AVX-512 (benchmarks/results/cost_model.json). Rounding by 8 suits other processors too."""


def figures_file() -> Path:
    """Return the file in the user's cache; it need not exist."""
    return cache_folder() / "latency.json"


def figures_in_use() -> Figures:
    """Return what `onnxprune tune` measured on this machine with this ONNX Runtime; else the built-in figures.

    Raises:
        ModelError: The file in the cache is damaged.
    """
    path = figures_file()
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return BUILT_IN
    figures = _read(path, changed)
    import onnxruntime

    fits = (figures.processor, figures.onnxruntime) == (processor(), onnxruntime.__version__)
    return figures if fits else BUILT_IN


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Figures:
    """Read the file as it is since it was changed."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("format")
        kinds = {kind: tuple(float(number) for number in content["kinds"][kind]) for kind in KINDS}
        if any(len(each) != len(get_args(Work)) for each in kinds.values()):
            raise ValueError("kinds")
        return Figures(**{**content, "kinds": kinds})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"'{path}' is damaged: run onnxprune tune again, or remove the file") from error
