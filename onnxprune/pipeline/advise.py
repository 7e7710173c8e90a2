"""What to try on a model: three commands, each with what it should bring as far as that is known before a run.

Multiply-adds and bytes follow from the graph alone, so that they are computed: units are cut by magnitude, on a copy,
and counted. What happens to the accuracy only a run with data can tell.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.errors import DataError, ModelError, OnnxPruneError
from onnxprune.graph import size
from onnxprune.pipeline.inspect import Inspection
from onnxprune.pipeline.run import prune

_SHARE = 0.5  # of the weights that go with their units
_ZEROS = 0.9  # of the weights that become zero
_GAP8 = 5 / 4  # bytes of a packed float32 over those of a plain one: its value and the gap before it
_LEAST_SHARE = 0.05  # of the weights that have to go with units for a cut of units to be worth a run


@dataclass(frozen=True)
class Proposal:
    """A command to try.

    Attributes:
        aim: What it is for.
        command: As it is typed.
        brings: What it should bring.
    """

    aim: str
    command: str
    brings: str


def propose(model: ir.Model, path: str, inspection: Inspection) -> tuple[Proposal, ...]:
    """Return commands to try on a model; none where it holds no weights.

    Args:
        model: The model; it is not changed.
        path: Its file, as the user wrote it.
        inspection: What `inspect` found in it.
    """
    if not inspection.weight_parameters:
        return ()
    names = _Names(path)
    exact = inspection.unit_parameters / inspection.weight_parameters
    inexact = inspection.inexact_parameters / inspection.weight_parameters
    smaller = _smaller(model, names, inspection)
    if max(exact, inexact) < _LEAST_SHARE:
        return smaller, _int8(names), _safest(names, "")
    allow = exact < _LEAST_SHARE
    sparsity = round(_SHARE * (inexact if allow else exact), 2)
    structure = f"--structure channels{' --allow-inexact' if allow else ''}"
    return _faster(model, names, sparsity, structure, inexact=allow), smaller, _safest(names, f"{structure} ")


@dataclass(frozen=True)
class _Names:
    """The names of files in commands, ready for a shell."""

    model: str

    def command(self, ending: str, flags: str) -> str:
        """Return a command that writes a file of its own, so that all commands can be tried."""
        stem = "model" if self.model == "-" else self.model.removesuffix(".onnx")
        return f"onnxprune {shlex.quote(self.model)} -o {shlex.quote(f'{stem}.{ending}.onnx')} {flags}"


def _faster(model: ir.Model, names: _Names, sparsity: float, structure: str, *, inexact: bool) -> Proposal:
    command = names.command("fast", f"{structure} --sparsity {sparsity:g} --calibration inputs.npz")
    try:
        parameters, macs = _cut(model, sparsity, inexact=inexact)
    except OnnxPruneError as error:
        return Proposal("run faster", command, f"fewer multiply-adds (they could not be counted here: {error})")
    work = f"{macs:.0%} of the multiply-adds" if macs is not None else "fewer multiply-adds"
    brings = f"about {work} and {parameters:.0%} of the parameters are left; latency follows the multiply-adds"
    return Proposal("run faster", command, brings)


def _cut(model: ir.Model, sparsity: float, *, inexact: bool) -> tuple[float, float | None]:
    """The shares of parameters and multiply-adds that are left after a cut of units; None where work is not known."""
    pruned = prune(
        model,
        structure="channels",
        sparsity=sparsity,
        allow_inexact=inexact,
        verification=False,
        latency=False,
        accept_unproved=True,
    ).model
    try:
        sample: runtime.Feeds = runtime.one_sample(model)
    except (DataError, ModelError):
        sample = {}
    before, after = (_figures(m, sample) for m in (model, pruned))
    work = after.macs / before.macs if before.macs and after.macs is not None else None
    return after.parameters / max(before.parameters, 1), work


def _figures(model: ir.Model, sample: runtime.Feeds) -> size.Figures:
    shapes = runtime.concrete_shapes(model, sample, size.counted_values(model)) if sample else None
    return size.figures(model, shapes)


def _smaller(model: ir.Model, names: _Names, inspection: Inspection) -> Proposal:
    whole = max(model_io.saved_size(model), 1)
    weights = sum(parameter.tensor.nbytes for parameter in size.parameters(model))
    share = min(inspection.weight_parameters / max(sum(p.tensor.size for p in size.parameters(model)), 1), 1.0)
    left = 1 - weights * share * (1 - (1 - _ZEROS) * _GAP8) / whole
    return Proposal(
        "store it small",
        names.command("small", f"--sparsity {_ZEROS:g} --pack --calibration inputs.npz"),
        f"the file has about {left:.0%} of its bytes; it runs as fast as before",
    )


def _int8(names: _Names) -> Proposal:
    return Proposal(
        "store and move it in int8",
        names.command("int8", "--sparsity 0.5 --quantize int8 --calibration inputs.npz"),
        "weights take a quarter of their bytes; latency depends on the processor and is measured",
    )


def _safest(names: _Names, structure: str) -> Proposal:
    return Proposal(
        "take all that accuracy allows",
        names.command("safe", f"{structure}--max-drop 1% --calibration inputs.npz --eval-data labelled.npz"),
        "the highest sparsity at which the metric falls by at most one point, found by trying",
    )


def inputs_line(inputs: dict[str, tuple[int | str, ...]]) -> str:
    """Say what inputs.npz has to hold: each input by name with its dimensions."""
    return ", ".join(f"{name} [{_dims(dims)}]" for name, dims in inputs.items())


def _dims(dims: Sequence[int | str]) -> str:
    return ", ".join(map(str, dims))
