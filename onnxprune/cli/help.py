"""Help that fits a screen: the flags of every day in a line each, all others under ``--help-all`` by subject."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

EVERYDAY: Mapping[str, str] = {
    "model": "The .onnx file; it is never changed.",
    "output": "Where to write [MODEL.pruned.onnx].",
    "sparsity": "Share of the weights that goes, such as 0.5.",
    "target_latency": "Or the latency to reach, after / before.",
    "max_drop": "Or the most that the metric may fall.",
    "preset": "Or settings for an aim: smallest, fastest, safe.",
    "structure": "weights (compress), channels (run faster), 2:4.",
    "calibration": "Inputs (.npz) to look at: better choices, recovery.",
    "eval_data": "Labelled inputs (.npz) to measure the metric on.",
    "retrain": "Train the pruned model on --data.",
    "data": "What to train on: .npz, .csv, folder, module:fn.",
    "quantize": "int8, int8-dynamic or fp16, after pruning.",
    "pack": "Store zeros small, in standard ONNX.",
    "require": "Write only if this holds: latency<=0.6.",
    "report": "Write one HTML page about the run.",
    "force": "Replace an existing output.",
}
"""What ``prune --help`` shows, with a text that fits a line."""

SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "How much": ("sparsity", "quality", "target_latency", "target_macs", "target_size", "max_drop", "preset"),
    "What goes": (
        "structure", "criterion", "allocation", "unit_share", "kinds", "allow_inexact", "round_to", "floor", "exclude",
        "only", "ends", "remove_dead",
    ),
    "In steps": ("iterations", "schedule", "initial_sparsity"),
    "Data": ("calibration", "calibration_samples", "recover", "eval_data", "metric"),
    "Deploy": ("quantize", "pack", "pack_values", "sparse_initializers", "require"),
}  # fmt: skip
"""The headings of ``--help-all``; what is not named here keeps its own, or stands under "Run"."""

_ALL = "onnxprune.help_all"


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        print(ctx.get_help(), end="")
        raise typer.Exit


HelpAllFlag = Annotated[
    bool, typer.Option("--help-all", callback=_show_all, is_eager=True, help="Show every flag and exit.")
]


class EverydayHelp(TyperCommand):
    """A command whose ``--help`` shows the flags of `EVERYDAY` alone, and ``--help-all`` all of them by subject."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        subjects = {name: subject for subject, names in SUBJECTS.items() for name in names}
        with _changed(self.params) as parameters:
            for parameter in parameters:
                if not ctx.meta.get(_ALL):
                    name = str(parameter.name)
                    parameter.hidden = name not in EVERYDAY and name not in ("help", "help_all")
                    parameter.help = EVERYDAY.get(name, parameter.help)
                    parameter.rich_help_panel = None
                    parameter.show_default = False
                elif parameter.param_type_name == "option" and parameter.rich_help_panel is None:
                    parameter.rich_help_panel = subjects.get(str(parameter.name), "Run")
            super().format_help(ctx, formatter)


@contextmanager
def _changed(parameters: list[Any]) -> Iterator[list[Any]]:
    """The parameters, which may be changed inside and are as before afterwards."""
    before = [dict(vars(parameter)) for parameter in parameters]
    try:
        yield list(parameters)
    finally:
        for parameter, attributes in zip(parameters, before, strict=True):
            vars(parameter).update(attributes)
