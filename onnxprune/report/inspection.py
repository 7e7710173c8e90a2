"""What `inspect` found, as tables on the console."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from onnxprune.pipeline.inspect import Inspection
from onnxprune.report.console import of_inputs, uncounted_line
from onnxprune.report.text import shown
from onnxprune.structure.rules.contraction import KERNEL_SIDE


def print_inspection(console: Console, model: str, inspection: Inspection) -> None:
    """Print groups, shares, and what is pinned and why."""
    console.print(_groups(model, inspection))
    total = max(inspection.weight_parameters, 1)
    exact, inexact = inspection.unit_parameters / total, inspection.inexact_parameters / total
    console.print(
        f"{inspection.weight_parameters:,} weights; {exact:.1%} of them go with whole units exactly, {inexact:.1%} "
        f"with --allow-inexact; {inspection.unit_macs / max(inspection.macs, 1):.1%} of {inspection.macs:,} "
        f"multiply-adds{of_inputs(inspection.input_shapes)}"
    )
    if inspection.caches is not None:
        caches = inspection.caches
        freed = " and ".join(f"{n} {kind}" for kind, n in caches.units.items()) or "no more units"
        console.print(
            f"--resize-io narrows {caches.count} caches among inputs and outputs: {freed}, the same in every layer, go "
            f"as well ({caches.unit_parameters / total:.1%} of the weights exactly), or up to {caches.layers} layers"
        )
    reasons = [reason.split(": ", 1)[1] for w in inspection.weights for reason in w.pinned]
    pinned = Counter(r for r in reasons if not r.endswith(KERNEL_SIDE))
    if pinned:
        table = Table(title="axes of weights that cannot be cut", title_justify="left")
        table.add_column("axes", justify="right")
        table.add_column("because of")
        for reason, count in pinned.most_common():
            table.add_row(str(count), shown(reason))
        console.print(table)
    if inspection.uncounted:
        console.print(uncounted_line(inspection.uncounted))
    if inspection.unruled:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(inspection.unruled.items()))
        console.print(f"[yellow]operators without a rule, all that they touch is pinned:[/] {shown(listed)}")


def _groups(model: str, inspection: Inspection) -> Table:
    table = Table(title=shown(model), title_justify="left")
    for name in ("group", "kind", "units", "cuts", "exact"):
        table.add_column(name, justify="right" if name == "units" else "left", overflow="fold")
    for group in inspection.groups:
        sites = group.sites[0] if len(group.sites) == 1 else f"{len(group.sites)} axes"
        table.add_row(shown(group.name), group.kind, str(group.units), shown(sites), shown(group.inexact) or "yes")
    return table
