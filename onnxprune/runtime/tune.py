"""What work takes in ONNX Runtime on this machine, measured on small graphs: ``onnxprune tune``.

    figures = tune()

Each graph holds many nodes of one kind. ONNX Runtime's own profile tells what each took; of several runs a fast one
counts, which other work on the machine disturbs least. Figures of a kind are those of least relative error, none below
zero (structure/figures.py says what they mean).
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.graph.size import Shapes
from onnxprune.runtime.libraries import session_options
from onnxprune.runtime.probes import (
    TINY,
    Key,
    Probe,
    channel_probes,
    column_probes,
    graphs_of_probes,
    key_of,
    tiny_graph,
)
from onnxprune.structure.costs import work_of
from onnxprune.structure.figures import BUILT_IN, KINDS, Figures, Kind, Work
from onnxprune.structure.machine import processor

RUNS = 12
"""Runs of each graph, after one that is not counted."""

_SHORT = 20_000.0  # nanoseconds below which errors count as absolute ones
_TYPICAL = 0.3  # the share of runs that are no slower than what counts: the fastest find all that they read in caches
_DISTURBED = 1.3  # a node that takes so many times what its kind says was disturbed by other work, and is left out
_STEPS = (4, 8, 16, 32)

Sample = tuple[ir.Node, Shapes, float]
"""A node, its shapes, and the nanoseconds that it took."""


def tune(progress: Callable[[str], None] | None = None, *, runs: int = RUNS) -> Figures:
    """Measure this machine; it takes some seconds.

    Args:
        progress: Called with what is measured next.
        runs: Runs of each graph.
    """
    around = _around_a_node()
    samples: list[Sample] = []
    for name, probe in graphs_of_probes():
        if progress is not None:
            progress(name)
        samples += [(node, shapes, max(took - around, 100.0)) for node, shapes, took in _measured(probe, runs)]
    if progress is not None:
        progress("steps of channels and columns")
    block, step = (_step_of(probes, runs) for probes in (channel_probes(), column_probes()))
    fitted = _fit(samples, block)
    kinds = {kind: fitted.get(kind, BUILT_IN.kinds[kind]) for kind in KINDS}
    return Figures(kinds, block, step, processor(), ort.__version__)


def _step_of(probes: Mapping[int, Probe], runs: int) -> int:
    """The step by which time rises with a count: of `_STEPS`, that of which a straight line leaves the least error.

    Args:
        probes: By count, a graph of one node that matters.
        runs: Runs of each.
    """
    counts = np.array(list(probes))
    took = np.array([max(_profile(probe, runs).values()) for probe in probes.values()])
    errors = {}
    for step in _STEPS:
        line = np.stack([-(-counts // step) * step, np.ones(len(counts))], axis=1)
        errors[step] = float(np.square(line @ np.linalg.lstsq(line, took, rcond=None)[0] - took).sum())
    return min(_STEPS, key=lambda step: (errors[step], step))


def _fit(samples: Sequence[Sample], block: int) -> dict[Kind, Work]:
    """Figures by kind."""
    rows: dict[Kind, list[tuple[Work, float]]] = defaultdict(list)
    for node, shapes, took in samples:
        work = work_of(node, shapes, block)
        if work is not None:
            rows[work[0]].append((work[1], took))
    figures: dict[Kind, Work] = {}
    for kind, pairs in rows.items():
        amounts, took_each = np.array([work for work, _ in pairs]), np.array([took for _, took in pairs])
        solution = _solved(amounts, took_each)
        kept = took_each <= _DISTURBED * np.maximum(amounts @ solution, _SHORT)
        figures[kind] = tuple(_solved(amounts[kept], took_each[kept]).tolist())
    return figures


def _solved(amounts: npt.NDArray[Any], took: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The figures of least relative error."""
    weights = 1 / np.sqrt(took * np.maximum(took, _SHORT))
    return least_squares_above_zero(amounts * weights[:, None], took * weights)


def least_squares_above_zero(matrix: npt.NDArray[Any], target: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the x of least |matrix x - target| of which no number is negative: the best of all choices of columns.

    Args:
        matrix: Shape (rows, columns), of few columns.
        target: Shape (rows,).
    """
    scale = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float64).tiny)
    columns = [i for i in range(matrix.shape[1]) if np.abs(matrix[:, i]).max() > 0]
    best, least = np.zeros(matrix.shape[1]), float(target @ target)
    for chosen in (list(c) for n in range(1, len(columns) + 1) for c in itertools.combinations(columns, n)):
        part = matrix[:, chosen] / scale[chosen]
        solution = np.linalg.lstsq(part, target, rcond=None)[0]
        error = float(np.square(part @ solution - target).sum())
        if (solution >= 0).all() and error < least:
            best, least = np.zeros(matrix.shape[1]), error
            best[chosen] = solution / scale[chosen]
    return best


def _measured(probe: Probe, runs: int) -> Iterator[Sample]:
    """The nodes of a probe's graph and what each took, those that ONNX Runtime adds left out."""
    for key, took in _profile(probe, runs).items():
        if key in probe.nodes:
            yield (*probe.nodes[key], took)


def _profile(probe: Probe, runs: int) -> Mapping[Key, float]:
    """The nanoseconds of the fastest run of each node."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        options = _options()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(probe.model, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, probe.feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    took: dict[Key, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            told = event["args"]
            inputs, outputs = (_shapes(told[f"{side}_type_shape"]) for side in ("input", "output"))
            took[key_of(told["op_name"], inputs, outputs)].append(1000.0 * event["dur"])
    return {key: float(np.quantile(each, _TYPICAL)) for key, each in took.items()}


def _options() -> Any:
    """Options of a session on one thread, with all optimisations."""
    options = session_options()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _shapes(told: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for entry in told for shape in entry.values()]


def _around_a_node() -> float:
    """Nanoseconds by which a profile tells more of a node than the node takes in a run without one."""
    probe = tiny_graph()
    (told,) = _profile(probe, RUNS).values()
    session = ort.InferenceSession(probe.model, _options(), providers=["CPUExecutionProvider"])
    least = math.inf
    for _ in range(5):
        start = time.thread_time_ns()
        for _ in range(50):
            session.run(None, probe.feeds)
        least = min(least, (time.thread_time_ns() - start) / 50)
    return max(told - least / TINY, 0.0)
