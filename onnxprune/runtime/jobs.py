"""Calls side by side, through joblib: in other processes, or on a cluster that ``joblib.parallel_config`` names.

for number, result in each(measure, model, levels, jobs=4):     # measure(model, level), as the results come
    ...

With one job nothing leaves this process, so that joblib need not be there. What all calls share travels once to each
worker, with the libraries of custom operators in use; models travel as bytes.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.errors import OnnxPruneError, RecipeError
from onnxprune.runtime import libraries

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
_Packed = npt.NDArray[np.uint8]

_unpacked = threading.local()  # what a thread of a worker unpacked last: other calls of the same work share it


def check_jobs(jobs: int | None) -> None:
    """Refuse a number of jobs that cannot be.

    Raises:
        RecipeError: It is 0, or more than one without joblib.
    """
    if jobs == 0:
        raise RecipeError("--jobs: give a number of jobs, or -1 for one a core (not 0)")
    if jobs not in (None, 1) and not _has_joblib():
        raise RecipeError("--jobs needs joblib: pip install 'onnxprune[sweep]'")


def with_jobs(jobs: int | None) -> AbstractContextManager[Any]:
    """Let all work inside run so many calls at a time; None leaves it at one, or at what is configured around.

    Raises:
        RecipeError: As `check_jobs`.
    """
    check_jobs(jobs)
    if jobs is None or not _has_joblib():
        return nullcontext()
    import joblib

    return joblib.parallel_config(n_jobs=jobs)


def count_jobs(jobs: int | None = None) -> int:
    """Return how many calls run at a time: of None, one, or what `with_jobs` or ``joblib.parallel_config`` says."""
    if not _has_joblib():
        return 1
    import joblib

    return int(joblib.effective_n_jobs(jobs))


def each(
    function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item], *, jobs: int | None = None
) -> Iterator[tuple[int, Result]]:
    """Call a function for each item; yield the item's number and what came back, as it comes.

    Args:
        function: One of a module, called with `shared` and an item.
        shared: What all calls need.
        items: What differs from call to call; they are taken only as calls begin.
        jobs: Calls at a time, as joblib has it: -1 is one a core; None is one, or what is configured around.

    Raises:
        RecipeError: `shared` or an item cannot be handed to another process.
        OnnxPruneError: A process was ended from outside.
    """
    if count_jobs(jobs) == 1:
        yield from ((number, function(shared, item)) for number, item in enumerate(items))
        return
    from joblib import Parallel, delayed

    key, packed, in_use = uuid.uuid4().hex, _pack(shared), libraries.in_use()
    calls = (delayed(_call)(function, key, packed, in_use, i, _pack(item)) for i, item in enumerate(items))
    try:
        for number, result in Parallel(n_jobs=jobs, return_as="generator_unordered")(calls):
            yield number, pickle.loads(result.data)
    except BrokenProcessPool as error:
        raise OnnxPruneError(
            "--jobs: a process ended in the middle of its work, perhaps for want of memory: try fewer jobs"
        ) from error


def _call(
    function: Callable[[Any, Any], Any], key: str, packed: _Packed, in_use: Sequence[str], number: int, item: _Packed
) -> tuple[int, _Packed]:
    """One call, in a worker."""
    if getattr(_unpacked, "key", None) != key:
        _unpacked.shared, _unpacked.key = pickle.loads(packed.data), key
    with libraries.custom_operators(in_use):
        return number, _pack(function(_unpacked.shared, pickle.loads(item.data)))


def _has_joblib() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("joblib", "cloudpickle"))


def _pack(content: Any) -> _Packed:
    """The content as bytes: an array, of which joblib and Dask send one copy to a worker however often it is used.

    Raises:
        RecipeError: It cannot be handed to another process.
    """
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, part: Any) -> Any:
            if isinstance(part, ir.Model):
                return _model_of, (model_io.to_bytes(part), dict(part.graph.meta))
            return super().reducer_override(part)

    buffer = io.BytesIO()
    try:
        Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(content)
    except OnnxPruneError as error:
        raise RecipeError(f"--jobs: the model cannot be handed to other processes: {error}") from error
    except Exception as error:
        raise RecipeError(f"--jobs: what was given cannot be handed to other processes: {error}") from error
    return np.frombuffer(buffer.getbuffer(), np.uint8)


def _model_of(content: bytes, meta: dict[str, Any]) -> ir.Model:
    """A model from its bytes and from what is known of it beside the graph."""
    model = ir.from_proto(onnx.load_from_string(content))
    model.graph.meta.update(meta)
    return model
