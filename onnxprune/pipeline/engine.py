"""What an engine with kernels for zeros makes of the model to write: which layers it uses, and how fast it is there.

The rules of the engine (onnxprune/engines) are held against the model as it is delivered, quantised and all.
"""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from onnxprune import runtime
from onnxprune.engines import ENGINES, Engine, misfits
from onnxprune.engines.openvino import RATE
from onnxprune.errors import VerificationError
from onnxprune.passes import StoreOutputsFirst
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.result import EngineUse, Result
from onnxprune.pipeline.tiling import Again
from onnxprune.pipeline.trace import by_reason, first_of
from onnxprune.runtime import in_openvino
from onnxprune.runtime.in_openvino import EngineFigure
from onnxprune.selection.engines import layer_of
from onnxprune.structure.weights import prunable_weights

SAME = 1e-3
"""Outputs of a quantised model that differ by less, relative to the largest, are those of another order of sums."""

FAR = 0.1
"""Outputs that are further from ONNX Runtime's than this, relative to the largest, are told as a warning."""


def for_engine(original: ir.Model, result: Result, again: Again, *, latency: bool) -> Result:
    """Store weights as the recipe's engine wants them, say which layers it will use, and measure where it is installed.

    Args:
        original: The model before the run.
        result: With the model to write.
        again: Verifies the model once more.
        latency: Whether latency is measured.

    Raises:
        VerificationError: The engine does not run the model, or the model computes something else.
    """
    delivery = result.delivery
    assert result.recipe.engine is not None and delivery is not None
    engine = ENGINES[result.recipe.engine]
    if engine.outputs_first:
        result = _outputs_first(result, again)
    use = _use(result.model, engine)
    notes = _notes(use, engine, result.recipe.quantize)
    if engine.name == "openvino" and latency and result.verdict is not None and use.used:
        if in_openvino.is_installed():
            feeds = runtime.one_sample(original, seed=result.recipe.seed)
            figure = in_openvino.measure_in_openvino(original, result.model, feeds, {RATE: str(use.rate)})
            use, notes = replace(use, measured=figure), [*notes, _told(figure)]
        else:
            notes.append("OpenVINO is not installed here, so nothing was measured in it: pip install openvino")
    return replace(result, delivery=replace(delivery, engine=use), notes=(*result.notes, *notes))


def _outputs_first(result: Result, again: Again) -> Result:
    """The result with weights stored outputs first.

    Raises:
        VerificationError: The model computes something else.
    """
    model = result.model.clone()
    if not StoreOutputsFirst()(model).modified:
        return result
    if result.verdict is not None:
        (feeds,) = runtime.working_inputs(result.model, seed=result.recipe.seed, count=1)
        difference = runtime.compare(result.model, model, feeds).max_rel
        if difference > SAME:
            raise VerificationError(f"weights that are stored outputs first change outputs by {difference:.2g}")
    return replace(result, model=model, verdict=again(model, result.verdict))


def _use(model: ir.Model, engine: Engine) -> EngineUse:
    """Hold the rules of an engine against every layer of a model."""
    layers = [layer_of(weight) for weight in prunable_weights(prepare(model.clone()))]
    unused = misfits(engine, layers)
    unused |= engine.unused([layer for layer in layers if layer.name not in unused])
    used = [layer for layer in layers if layer.name not in unused]
    rate = min((float((layer.numbers() == 0).mean()) for layer in used), default=0.0)
    return EngineUse(engine.name, tuple(layer.name for layer in used), unused, math.floor(100 * rate) / 100)


def _notes(use: EngineUse, engine: Engine, form: str) -> list[str]:
    total = len(use.used) + len(use.unused)
    notes = [f"{engine.called} has kernels for the zeros of {len(use.used)} of {total} layers"]
    if use.used:
        notes[0] += f": {engine.advice.format(rate=f'{use.rate:.2f}')}"
    if use.unused:
        reasons = "; ".join(f"{first_of(names)}: {reason}" for reason, names in by_reason(use.unused).items())
        notes.append(f"{engine.called} has none for the other {len(use.unused)}: {reasons}")
    if form in engine.remarks:
        notes.append(engine.remarks[form])
    return notes


def _told(figure: EngineFigure) -> str:
    """What was measured, in a sentence."""
    text = (
        f"{figure.engine}: {figure.ratio:.2f} of the original's time, {figure.zeros_ratio:.2f} of its own without "
        f"kernels for zeros, which ran {figure.sparse_layers} of {figure.layers} matrix products; outputs differ "
        f"from ONNX Runtime's by {figure.difference:.2g} of the largest"
    )
    if not figure.machine_fits:
        text += "; this processor has no AMX, so the zeros were multiplied like other numbers"
    if figure.difference > FAR:
        text += ". That is far: compare the metric there before you ship it"
    return text
