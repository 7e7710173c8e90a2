"""Results as tables on the console: one short before/after table, then what the user should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from onnxprune.pipeline.result import NOT_VERIFIED
from onnxprune.report.text import shown
from onnxprune.verification.change import sentence
from onnxprune.verification.reach import Reach
from onnxprune.verification.verdict import of_inputs as plain_of_inputs

if TYPE_CHECKING:
    from onnxprune.pipeline.result import Result
    from onnxprune.runtime.latency import LatencyFigure
    from onnxprune.verification.verdict import Verdict

NO_FASTER = (
    "ONNX Runtime runs zeros no faster than other numbers (nor do block and 2:4 zeros on a CPU): for "
    "speed remove whole units with --structure channels, or zero weights with --structure tiles."
)

_MOST = 8
"""Nodes that one line names at most."""


def print_result(console: Console, model: str, output: str | None, result: Result) -> None:
    """Print a run's figures and verdict."""
    verdict = result.verdict
    if verdict is not None:
        _print_figures(console, model, verdict)
    parts = result.recipe.parts
    console.print(
        f"{result.gone:,} of {result.prunable:,} prunable weights are {parts.gone}: sparsity {result.sparsity:.1%}"
    )
    if result.delivery is not None and result.delivery.quantised_from is not None:
        size = result.delivery.quantised_from.after.file_bytes
        console.print(f"quantised to {result.delivery.quantize} (before that: {size:,} bytes)")
    if result.delivery is not None and result.delivery.packing is not None:
        packing = result.delivery.packing
        forms = ", ".join(f"{n} {form}" for form, n in Counter(t.form for t in packing.packed).most_common())
        console.print(
            f"packed {len(packing.packed)} of {len(packing.tensors)} tensors ({forms or 'none'}) to "
            f"{packing.ratio:.3f} of their bytes"
        )
    if result.dead:
        console.print(f"{result.dead:,} dead units went as well")
    if result.recovered is not None:
        console.print(recovery_line(result.recovered))
    for note in result.notes:
        console.print(f"[yellow]{shown(note)}[/]")
    if verdict is not None:
        console.print(_verdict(verdict, changed_by(result)))
        for reach in result.reach[-1:]:
            console.print(shown(Reach(**reach).line))
    else:
        console.print(f"[yellow]not proved[/]: {NOT_VERIFIED}")
    if not result.faster:
        console.print(f"[yellow]{NO_FASTER}[/]")
    console.print(f"wrote [b]{shown(output)}[/]" if output else "dry run: no model was written", soft_wrap=True)


def of_inputs(shapes: Mapping[str, Sequence[int]]) -> str:
    """The same of `verdict.of_inputs`, for Rich."""
    return shown(plain_of_inputs(shapes))


def machine_line(latency: LatencyFigure) -> str:
    """Say what measured the latency."""
    return shown(f"latency: CPU time of one run on {latency.processor}, ONNX Runtime {latency.onnxruntime}")


def uncounted_line(nodes: Sequence[str]) -> str:
    """Name the nodes whose multiply-adds are not counted, a few of many."""
    more = f" and {len(nodes) - _MOST} more" if len(nodes) > _MOST else ""
    return f"[yellow]multiply-adds that are not counted:[/] {shown(', '.join(nodes[:_MOST]))}{more}"


def _print_figures(console: Console, model: str, verdict: Verdict) -> None:
    console.print(_figures(model, verdict))
    if verdict.latency is not None:
        console.print(machine_line(verdict.latency))
    uncounted = dict.fromkeys((*verdict.before.uncounted, *verdict.after.uncounted))
    if uncounted:
        console.print(uncounted_line(list(uncounted)))


def _figures(model: str, verdict: Verdict) -> Table:
    table = Table(title=shown(model), title_justify="left")
    for name in ("", "before", "after", "after / before"):
        table.add_column(name, justify="left" if not name else "right")
    for name, a, b in _rows(verdict):
        table.add_row(name, f"{a:,}", f"{b:,}", f"{b / a:.3f}" if a else "")
    if verdict.latency is not None:
        latency = verdict.latency
        times = f"{latency.before_ms:.3g}", f"{latency.after_ms:.3g}"
        table.add_row(f"latency (ms, {latency.threads} thread)", *times, f"{latency.ratio:.3f}")
    if verdict.metric is not None:
        m = verdict.metric
        table.add_row(
            f"{m.name} ({m.samples} samples)", f"{m.before:.4f}", f"{m.after:.4f}", f"{m.after - m.before:+.4f}"
        )
    return table


def _rows(verdict: Verdict) -> Iterable[tuple[str, int, int]]:
    a, b = verdict.before, verdict.after
    yield "parameters", a.parameters, b.parameters
    yield "not zero", a.nonzero_parameters, b.nonzero_parameters
    if a.macs is not None and b.macs is not None:
        yield f"multiply-adds{of_inputs(verdict.input_shapes)}", a.macs, b.macs
    yield "file (bytes)", a.file_bytes, b.file_bytes


def changed_by(result: Result) -> str:
    """What changed the weights that are left, after removed == masked was checked; empty where nothing did."""
    parts = ("recovery", result.recovered is not None), ("training", result.recipe.retrain is not None)
    return " and ".join(name for name, did in parts if did)


def recovery_line(recovered: Mapping[str, Any]) -> str:
    """What recovery did, in one sentence."""
    changed = len({step["layer"] for step in recovered["steps"] if step["applied"]})
    tried = len({step["layer"] for step in recovered["steps"]})
    by, samples = ", ".join(recovered["methods"]), recovered["samples"]
    if not samples:
        return f"recovery ({by}; no data) changed {changed} of {tried} layers"
    return (
        f"recovery ({by}; {samples:,} calibration inputs) changed {changed} of {tried} layers: relative squared error "
        f"of the outputs {recovered['before']:.3g} before, {recovered['after']:.3g} after"
    )


def _verdict(verdict: Verdict, changed: str) -> str:
    masked = f"the same weights zeroed to {verdict.removed_vs_masked:.1e}"
    equal = "equals the original with " + masked
    if changed:
        equal = f"was equal to the original with {masked} before {changed}, masks held exactly"
    if verdict.unproved:
        return (
            f"[yellow]not proved[/]: the model loads and runs in ONNX Runtime, but {shown(verdict.unproved)}, so "
            "equal outputs say nothing of the cut"
        )
    return (
        f"[green]the cut is verified in ONNX Runtime[/]: it loads and runs{_in_batches(verdict.batches)}, {equal}; "
        f"against the original as it was, {sentence(verdict.output_change)}"
    )


def _in_batches(count: int) -> str:
    return f" in {count} batch sizes" if count > 1 else ""


def print_comparison(console: Console, a: str, b: str, verdict: Verdict) -> None:
    """Print two models side by side."""
    _print_figures(console, f"{a} and {b}", verdict)
    console.print(f"against {shown(a)}, {sentence(verdict.output_change)}")
