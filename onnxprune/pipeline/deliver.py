"""From a pruned model to the form that is delivered: quantised, packed, within its limits. The last step of a run.

Each step is measured in ONNX Runtime on the model that will be written: a quantised model is verified again against
the original, and a packed model must give the same outputs as the same model unpacked, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.data.calibration import Calibration
from onnxprune.data.readers import AnyData
from onnxprune.engines import ENGINES
from onnxprune.errors import ModelError, VerificationError
from onnxprune.model_io.atomic import publish, sync, temporary_beside
from onnxprune.packing import pack, to_sparse_initializers, unpack
from onnxprune.pipeline.clock import Progress
from onnxprune.pipeline.engine import for_engine
from onnxprune.pipeline.narrow import narrowed
from onnxprune.pipeline.result import Delivery, Result, measured_figures, shortcomings
from onnxprune.pipeline.tiling import in_tiles
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.requirements import parse
from onnxprune.recovery.rounding import round_by_samples
from onnxprune.runtime.session import Optimize
from onnxprune.verification.requirements import check_requirements
from onnxprune.verification.verdict import Verdict, verify

if TYPE_CHECKING:
    from onnxprune.runtime.quantise import Adapt

_LEVELS: tuple[Optimize, ...] = ("basic", "all")
_LOSSY_TOLERANCE = 1e-5  # packed against unpacked, for values that were stored with less precision


@dataclass(frozen=True)
class _Verifier:
    """How later forms of the model are compared with the original."""

    original: ir.Model
    recipe: Recipe
    latency: bool
    eval_data: AnyData | None
    metric: str | None

    def again(self, model: ir.Model, first: Verdict | None) -> Verdict | None:
        """Verify a later form of the model, where the first was; that removed == masked was proved of the first."""
        if first is None:
            return None
        return verify(
            self.original,
            model,
            removed_vs_masked=first.removed_vs_masked,
            unproved=first.unproved,
            seed=self.recipe.seed,
            latency=self.latency,
            eval_data=self.eval_data,
            metric=self.metric,
        )


def deliver(
    original: ir.Model,
    result: Result,
    *,
    latency: bool = True,
    eval_data: AnyData | None = None,
    metric: str | None = None,
    calibration: AnyData | None = None,
    samples: Calibration | None = None,
    progress: Progress | None = None,
) -> Result:
    """Quantise and pack the result as its recipe says, and check its limits.

    Args:
        original: The model before.
        result: The pruned model, in the shape of the original's inputs and outputs.
        latency: Whether to measure the latency ratio.
        eval_data: Labelled inputs, to measure the metric on.
        metric: Its name.
        calibration: Inputs that ranges of int8 are taken from, instead of the labelled ones.
        samples: The same as the run read them, that int4 is rounded by.
        progress: Called with the name of the layer that is rounded.

    Returns:
        The result with the model to write and the verdict measured on it.

    Raises:
        RecipeError: There is nothing to calibrate on.
        VerificationError: The packed model differs from the pruned one, or a limit is missed.
    """
    recipe = result.recipe
    verifier = _Verifier(original, recipe, latency, eval_data, metric)
    result = replace(result, delivery=Delivery(result.model))
    if recipe.parts.rewritten:
        result = in_tiles(original, result, verifier.again, latency=latency)
    if recipe.quantize != "no":
        result = _quantised(result, verifier, calibration, _rounding(samples, progress))
    if recipe.interface == "narrow":
        result = narrowed(original, result, latency=latency)
    if recipe.pack != "no":
        result = _packed(result, verifier)
    elif recipe.sparse_initializers:
        result = _sparse(result, verifier)
    if recipe.engine is not None:
        result = for_engine(original, result, verifier.again, latency=latency)
    result = replace(result, notes=(*result.notes, *shortcomings(result)))
    ensure_wanted(result)
    return result


def ensure_wanted(result: Result) -> None:
    """Check that the cut was proved, and the limits of the recipe.

    Raises:
        VerificationError: Nothing was proved, or a limit is missed; the error holds the result as evidence.
    """
    try:
        _ensure_proved(result)
        check_requirements(map(parse, result.recipe.require), measured_figures(result))
    except VerificationError as error:
        error.result = result
        raise


def _ensure_proved(result: Result) -> None:
    """Refuse a result of which nothing was proved.

    Raises:
        VerificationError: See above.
    """
    verdict = result.verdict
    if verdict is not None and verdict.unproved and not result.recipe.accept_unproved:
        raise VerificationError(
            f"nothing was proved, so no model was written: {verdict.unproved}. Give inputs on which the outputs react "
            "(--eval-data), or --accept-unproved"
        )


def write(result: Result, path: str | Path, *, force: bool = False) -> str:
    """Write the model to deliver; it appears whole or not at all. Returns its SHA-256, external data included.

    Raises:
        ModelError: The output is the input, exists (without ``force``), or cannot be written.
    """
    if result.delivery is None or not result.delivery.sparse_tensors:
        return model_io.save(result.model, path, force=force).sha256
    path = Path(path)
    model_io.check_output(path, force=force, source=model_io.source_of(result.model))
    content = to_sparse_initializers(result.model).SerializeToString(deterministic=True)
    try:
        with temporary_beside(path) as (temporary, file):
            file.write(content)
            sync(file)
            publish(temporary, path, replace=force)
    except FileExistsError:
        raise ModelError(f"the output '{path}' exists already: use --force to replace it.") from None
    except OSError as error:
        raise ModelError(f"the output '{path}' cannot be written: {error.strerror or error}.") from error
    return hashlib.sha256(content).hexdigest()


def written_bytes(result: Result) -> int:
    """Return how many bytes `write` would write, external data included."""
    if result.delivery is not None and result.delivery.sparse_tensors:
        return to_sparse_initializers(result.model).ByteSize()
    return model_io.saved_size(result.model)


def _quantised(result: Result, verifier: _Verifier, calibration: AnyData | None, rounding: Adapt | None) -> Result:
    from onnxprune.runtime.quantise import calibration_batches, quantise  # loads all of ONNX Runtime's tools

    form = result.recipe.quantize
    data = calibration or verifier.eval_data
    batches = calibration_batches(data, result.model) if data is not None and form == "int8" else []
    engine = result.recipe.engine
    quantised = quantise(result.model, form, batches, signed=engine is not None and ENGINES[engine].signed,
                         adapt=rounding if form == "int4" else None)  # fmt: skip
    verdict = verifier.again(quantised.model, result.verdict)
    assert result.delivery is not None
    delivery = replace(result.delivery, quantize=form, quantised_from=result.verdict)
    notes = (*result.notes, *quantised.notes)
    return replace(result, model=quantised.model, verdict=verdict, delivery=delivery, notes=notes)


def _rounding(samples: Calibration | None, progress: Progress | None) -> Adapt | None:
    """What rounds packed weights by the samples of the run; None where there are none."""
    if samples is None:
        return None

    def adapt(plain: ir.Model, quantised: ir.Model) -> str:
        from onnxprune.runtime.int4 import packed_matrices  # loads all of ONNX Runtime's tools

        matrices = list(packed_matrices(quantised))
        changed = round_by_samples(plain, matrices, samples.inputs, progress=progress)
        return f"rounded by the calibration samples: {changed} of {len(matrices)} weights, the others to the nearest"

    return adapt


def _packed(result: Result, verifier: _Verifier) -> Result:
    recipe = result.recipe
    assert recipe.pack != "no"
    packed, report = pack(result.model, values=recipe.pack_values, mode=recipe.pack)
    plain = unpack(packed)
    exact = recipe.pack_values == "fp32"
    if result.verdict is not None:
        batches = runtime.working_inputs(result.model, seed=recipe.seed, count=2)
        compare_forms(result.model if exact else plain, packed, batches, 0.0 if exact else _LOSSY_TOLERANCE)
    verdict = result.verdict if exact else verifier.again(plain, result.verdict)
    verdict = _with_bytes(verdict, model_io.saved_size(packed))
    assert result.delivery is not None
    return replace(result, model=packed, verdict=verdict, delivery=replace(result.delivery, packing=report))


def _sparse(result: Result, verifier: _Verifier) -> Result:
    proto = to_sparse_initializers(result.model)
    content = proto.SerializeToString(deterministic=True)
    if result.verdict is not None:
        batches = runtime.working_inputs(result.model, seed=verifier.recipe.seed, count=2)
        compare_forms(result.model, proto, batches, 0.0)
    verdict = _with_bytes(result.verdict, len(content))
    count = len(proto.graph.sparse_initializer)
    assert result.delivery is not None
    return replace(result, verdict=verdict, delivery=replace(result.delivery, sparse_tensors=count))


def compare_forms(
    plain: ir.Model, other: ir.Model | onnx.ModelProto, batches: Sequence[runtime.Feeds], tolerance: float
) -> None:
    """Check that another form of a model gives its outputs, at basic and at full optimisation.

    Args:
        plain: The model.
        other: The same, stored otherwise.
        batches: Inputs of both.
        tolerance: Largest difference allowed, relative to the largest output; 0 wants the same bits.

    Raises:
        VerificationError: It does not load or run, or its outputs are others.
    """
    content = other.SerializeToString() if isinstance(other, onnx.ModelProto) else other
    for level in _LEVELS:
        session = partial(runtime.make_session, optimize=level, exact=False, error=VerificationError)
        sessions = [session(model) for model in (plain, content)]
        for feeds in batches:
            a, b = (runtime.run(session, feeds, error=VerificationError) for session in sessions)
            gap = runtime.compare_outputs(a, b).max_rel
            if gap > tolerance or (tolerance == 0 and not _same_bits(a, b)):
                raise VerificationError(
                    f"the packed model differs from the same model unpacked by {gap:.2g} of the largest output at "
                    f"optimisation '{level}'; nothing was written, please report this model"
                )


def _same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(_bits(a[name]) == _bits(b[name]) for name in a)


def _bits(output: Any) -> Any:
    if isinstance(output, (list, tuple)):
        return [_bits(part) for part in output]
    array = np.asarray(output)
    return array.tolist() if array.dtype.kind in "OSU" else (array.dtype, array.shape, array.tobytes())


def _with_bytes(verdict: Verdict | None, size: int) -> Verdict | None:
    return None if verdict is None else replace(verdict, after=replace(verdict.after, file_bytes=size))
