"""What `inspect` found, on the console: what the network is, a summary, the groups, then what is pinned and why."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from onnxprune.pipeline.inspect import GroupInfo, Inspection
from onnxprune.report.console import of_inputs, uncounted_line
from onnxprune.report.text import cut_middle, readable_name, shown
from onnxprune.structure.rules.contraction import KERNEL_SIDE

_MOST_ROWS = 20
_MOST_HOLDERS = 6
_LONGEST_NAME, _LONGEST_SITE = 36, 20


def print_inspection(console: Console, model: str, inspection: Inspection, *, every_group: bool = False) -> None:
    """Print groups, shares, and what is pinned and why.

    Args:
        console: Where to.
        model: The name of the model.
        inspection: What `inspect` found.
        every_group: Show each group, also those that are alike.
    """
    print_summary(console, model, inspection)
    if inspection.groups:
        rows = [[group] for group in inspection.groups] if every_group else _alike(inspection)
        left_out = 0 if every_group else max(len(rows) - _MOST_ROWS, 0)
        console.print(_groups(inspection, _largest(rows, left_out)))
        if left_out:
            told = sum(map(len, _largest(rows, left_out)))
            console.print(f"these are the largest groups; {len(inspection.groups) - told} more with --all")
        elif len(rows) < len(inspection.groups):
            console.print("groups that are alike share a line; every group with --all")
        kinds = dict.fromkeys(group.kind for group in inspection.groups)
        if len(kinds) > 1:
            console.print(f"--kinds takes some of them: {', '.join(kinds)}")
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


def print_summary(console: Console, model: str, inspection: Inspection) -> None:
    """Print what can go in a few lines: weights, kinds of units, and learnt numbers that are no weights."""
    console.print(f"[b]{shown(model)}[/]", soft_wrap=True)
    console.print(inspection.line, soft_wrap=True)
    exact, inexact, total = inspection.unit_parameters, inspection.inexact_parameters, inspection.weight_parameters
    if inspection.weights:
        more = f", {inexact / total:.1%} with --allow-inexact" if inexact > exact else ""
        layers = f"{inspection.weight_parameters:,} weights in {len(inspection.weights)} layers"
        console.print(f"{layers}; {exact / total:.1%} of them go with whole units exactly{more}")
        cuttable = inspection.unit_macs / max(inspection.macs, 1)
        work = f"{inspection.macs:,} multiply-adds{of_inputs(inspection.input_shapes)}"
        console.print(f"{work}; {cuttable:.1%} of them in layers that can be cut")
    else:
        console.print("it holds no weights that can be pruned: there is no Conv, Gemm, MatMul or recurrent layer")
    if inspection.caches is not None:
        caches = inspection.caches
        freed = " and ".join(f"{n} {kind}" for kind, n in caches.units.items()) or "no more units"
        share = caches.unit_parameters / max(total, 1)
        console.print(
            f"--resize-io narrows {caches.count} caches among inputs and outputs: {freed}, the same in every layer, go "
            f"as well ({share:.1%} of the weights exactly), or up to {caches.layers} layers"
        )
        for kind, reason in caches.stays.items():
            console.print(f"the {kind} stays with it: {shown(reason)}")
    for kind, counts in _by_kind(inspection).items():
        console.print(f"{len(counts)} {'groups' if len(counts) > 1 else 'group'} of {kind}: {sum(counts):,} units")
    if inspection.elsewhere:
        items = list(inspection.elsewhere.items())
        listed = ", ".join(f"{name} ({count:,})" for name, count in items[:_MOST_HOLDERS])
        rest = f" and {len(items) - _MOST_HOLDERS} more operators" if len(items) > _MOST_HOLDERS else ""
        console.print(f"learnt numbers that are no prunable weights, by operator: {shown(listed)}{rest}")


def _by_kind(inspection: Inspection) -> dict[str, list[int]]:
    """The number of units in each group, by kind; the most units first."""
    kinds: dict[str, list[int]] = {}
    for group in inspection.groups:
        kinds.setdefault(group.called or group.kind, []).append(group.units)
    return dict(sorted(kinds.items(), key=lambda item: -sum(item[1])))


def _alike(inspection: Inspection) -> list[list[GroupInfo]]:
    """Groups of the same kind, with as many units that cut as many axes, and equally exact; in the model's order."""
    rows: dict[tuple[str, int, int, bool], list[GroupInfo]] = {}
    for group in inspection.groups:
        key = (group.called or group.kind, group.units, len(group.sites), not group.inexact)
        rows.setdefault(key, []).append(group)
    return list(rows.values())


def _largest(rows: list[list[GroupInfo]], left_out: int) -> list[list[GroupInfo]]:
    """The rows without those of the fewest units."""
    by_size = sorted(range(len(rows)), key=lambda i: -rows[i][0].units)
    return [rows[i] for i in by_size[: len(rows) - left_out]] if left_out else rows


def _groups(inspection: Inspection, rows: list[list[GroupInfo]]) -> Table:
    """A line for each row of groups that are alike: the layers of a transformer make a few lines."""
    table = Table()
    for name in ("group", "kind", "units", "cuts", "exact"):
        table.add_column(name, justify="right" if name == "units" else "left", overflow="fold")
    nodes = {w.name: w.node or f"{w.operator} {w.name}" for w in inspection.weights}
    for row in rows:
        group = row[0]
        name, site = (readable_name(name, nodes) for name in (group.name, group.sites[0]))
        sites = cut_middle(site, _LONGEST_SITE) if len(group.sites) == len(row) == 1 else _axes(len(group.sites))
        others = f" and {len(row) - 1} more" if len(row) > 1 else ""
        table.add_row(
            shown(cut_middle(name, _LONGEST_NAME)) + others,
            group.called or group.kind,
            f"{len(row)} x {group.units}" if len(row) > 1 else str(group.units),
            shown(sites),
            shown(group.inexact) or "yes",
        )
    return table


def _axes(count: int) -> str:
    return f"{count} axis" if count == 1 else f"{count} axes"
