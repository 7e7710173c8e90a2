"""What If, Loop and Scan run: the bodies are modules, called with the values that they capture."""

from __future__ import annotations

from typing import Any

import torch

Row = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of what one step of a Loop or Scan adds to an output, for the case that there is no step."""


def if_else(
    condition: Any,
    then_branch: torch.nn.Module,
    then_captures: tuple[Any, ...],
    else_branch: torch.nn.Module,
    else_captures: tuple[Any, ...],
) -> tuple[Any, ...]:
    """Run one of two branches. `condition` may be a bool or a list that holds one."""
    while isinstance(condition, (list, tuple)):
        condition = condition[0]
    results: tuple[Any, ...] = then_branch(*then_captures) if condition else else_branch(*else_captures)
    return results


def loop(
    trips: Any,
    condition: Any,
    carried: tuple[Any, ...],
    body: torch.nn.Module,
    captures: tuple[Any, ...],
    declared: tuple[Row, ...],
) -> tuple[Any, ...]:
    """Run a body until `trips` steps are done or it says stop; scan outputs are stacked along a new first axis."""
    trips, condition = _single(trips), _single(condition)
    step, going = 0, True if condition is None else bool(condition)
    rows: list[list[torch.Tensor]] = [[] for _ in declared]
    while going and (trips is None or step < trips):
        going, *results = body(step, going, *carried, *captures)
        going = bool(_single(going))
        carried = tuple(results[: len(carried)])
        for row, result in zip(rows, results[len(carried) :], strict=True):
            row.append(result)
        step += 1
    device = carried[0].device if carried else None
    return (*carried, *(_stack(row, kind, device) for row, kind in zip(rows, declared, strict=True)))


def _stack(rows: list[torch.Tensor], declared: Row, device: torch.device | None, axis: int = 0) -> torch.Tensor:
    """One tensor of all steps; an empty one of the declared type and shape where there was no step."""
    if rows:
        return torch.stack(rows, dim=axis)
    dtype, shape = declared
    at = axis % (len(shape) + 1)
    return torch.empty(*shape[:at], 0, *shape[at:], dtype=dtype, device=device)


def _single(value: Any) -> Any:
    while isinstance(value, (list, tuple)):
        value = value[0]
    return value


def scan(
    carried: tuple[Any, ...],
    scanned: tuple[torch.Tensor, ...],
    body: torch.nn.Module,
    captures: tuple[Any, ...],
    declared: tuple[Row, ...],
    scan_input_axes: tuple[int, ...] = (),
    scan_input_directions: tuple[int, ...] = (),
    scan_output_axes: tuple[int, ...] = (),
    scan_output_directions: tuple[int, ...] = (),
) -> tuple[Any, ...]:
    """Run a body over slices of `scanned`; its further outputs are stacked along `scan_output_axes`."""
    axes = scan_input_axes or (0,) * len(scanned)
    backward = scan_input_directions or (0,) * len(scanned)
    length = scanned[0].shape[axes[0]]
    rows: list[tuple[torch.Tensor, ...]] = []
    for step in range(length):
        slices = [
            x.select(axis, length - 1 - step if reverse else step)
            for x, axis, reverse in zip(scanned, axes, backward, strict=True)
        ]
        results = body(*carried, *slices, *captures)
        rows.append(results[len(carried) :])
        carried = tuple(results[: len(carried)])
    stacked = []
    for index, kind in enumerate(declared):
        row = [results[index] for results in rows]
        if scan_output_directions and scan_output_directions[index]:
            row.reverse()
        stacked.append(_stack(row, kind, scanned[0].device, scan_output_axes[index] if scan_output_axes else 0))
    return (*carried, *stacked)


def scan_8(
    carried: tuple[Any, ...],
    scanned: tuple[torch.Tensor, ...],
    body: torch.nn.Module,
    captures: tuple[Any, ...],
    declared: tuple[Row, ...],
    directions: tuple[int, ...] = (),
) -> tuple[Any, ...]:
    """Scan of opset 8: every value has a batch axis first, and slices run over axis 1."""
    batch = scanned[0].shape[0]
    results = [
        scan(tuple(x[b] for x in carried), tuple(x[b] for x in scanned), body, captures, declared, (), directions)
        for b in range(batch)
    ]
    return tuple(torch.stack([row[index] for row in results]) for index in range(len(results[0])))
