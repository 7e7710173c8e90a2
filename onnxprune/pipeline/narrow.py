"""`--resize-io`: caches are freed before the run, and narrowed together when it is delivered.

See `graph.narrowing`. During the run both networks keep their interface; here it becomes that of the heads that are
left, and the narrow model is compared with the wide one on the same inputs, cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import RecipeError, VerificationError
from onnxprune.graph import size
from onnxprune.graph.narrowing import Narrowed, free_caches, narrow_caches
from onnxprune.pipeline.result import Result
from onnxprune.pipeline.runtime_settings import interface_of
from onnxprune.runtime.session import run
from onnxprune.verification.comparable import comparable
from onnxprune.verification.proof import TOLERANCE
from onnxprune.verification.verdict import Verdict, measure_latency


def free_interface(original: ir.Model) -> None:
    """Let the heads of caches go, in place.

    Raises:
        RecipeError: The model has no caches.
    """
    if not free_caches(original):
        raise RecipeError(
            "--resize-io: the model has no caches, inputs that its attention extends or reads, and outputs that hand "
            "them on, so there is nothing to narrow: leave the flag out"
        )


def narrowed(original: ir.Model, result: Result, *, latency: bool) -> Result:
    """Give the result the interface of the heads that are left.

    Raises:
        VerificationError: The narrow model computes something else.
    """
    narrow = result.model.clone()
    narrow.graph.meta.update(result.model.graph.meta)
    interface = narrow_caches(narrow)
    verdict = result.verdict
    if verdict is not None:
        before = original.clone()
        narrow_caches(before)
        verdict = _measured(verdict, before, result.model, narrow, interface, latency, result.recipe.seed)
    notes = (*result.notes, *_told(interface))
    return replace(
        result, model=narrow, verdict=verdict, interface=interface_of(original, narrow, interface), notes=notes
    )


def _told(interface: Narrowed) -> Sequence[str]:
    if interface.gone:
        return (f"caches of {interface.layers} layers are left; their inputs and outputs are numbered anew",)
    if not interface.kept:
        return ("--resize-io: no head and no position of a cache went, so inputs and outputs are what they were",)
    heads, sizes = (sorted(set(numbers)) for numbers in (interface.heads, interface.size))
    listed = [" or ".join(map(str, numbers)) for numbers in (heads, sizes)]
    return (f"caches among inputs and outputs have {listed[0]} heads of {listed[1]} numbers now",)


def _measured(
    verdict: Verdict, before: ir.Model, wide: ir.Model, narrow: ir.Model, interface: Narrowed, latency: bool, seed: int
) -> Verdict:
    """The verdict of the narrow model: that it computes what the wide one does, its size and its latency."""
    batches = runtime.working_inputs(wide, seed=seed, count=2)
    sessions = [runtime.make_session(comparable(model), error=VerificationError) for model in (wide, narrow)]
    types = {value.dtype for value in wide.graph.outputs if value.dtype is not None}
    limit = max((TOLERANCE.get(dtype, 1e-5) for dtype in types), default=1e-5)
    for feeds in batches:
        expected = interface.cut(run(sessions[0], feeds))
        gap = runtime.compare_outputs(expected, run(sessions[1], interface.cut(feeds))).max_rel
        if not gap <= limit:
            raise VerificationError(
                f"the model with narrow caches differs from the one with wide ones by {gap:.2g} of the largest output; "
                "nothing was written, please report this model"
            )
    sample = runtime.one_sample(before, seed=seed, instead=batches[0])
    cut = interface.cut(sample)
    figures = [size.figures(model, runtime.concrete_shapes(model, feeds, size.counted_values(model)))
               for model, feeds in ((before, sample), (narrow, cut))]  # fmt: skip
    timed = measure_latency(before, narrow, sample, cut) if latency and verdict.latency is not None else None
    return replace(
        verdict,
        before=figures[0],
        after=figures[1],
        latency=timed,
        latency_ratio=None if timed is None else timed.ratio,
    )
