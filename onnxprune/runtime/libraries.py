"""Libraries of custom operators, which every session loads: ``--custom-ops LIB``.

with custom_operators([Path("libmine.so")]):
    ...    # every session that is made here knows the operators of the library
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from onnxprune.errors import ModelError
from onnxprune.model_io.bodies import nodes_of

_LOADED: ContextVar[tuple[str, ...]] = ContextVar("_LOADED", default=())
_MOST = 3  # operators that a sentence names
_SessionOptions = ort.SessionOptions


@contextmanager
def custom_operators(libraries: Sequence[str | os.PathLike[str]]) -> Iterator[None]:
    """Let all sessions that are made inside load these libraries, beside those of a block around.

    Raises:
        ModelError: One is no file, or no library of operators.
    """
    paths = tuple(dict.fromkeys((*_LOADED.get(), *(os.path.abspath(path) for path in libraries))))
    for path in paths:
        _check(path)
    token = _LOADED.set(paths)
    try:
        yield
    finally:
        _LOADED.reset(token)


def _check(path: str) -> None:
    if not Path(path).is_file():
        raise ModelError(f"--custom-ops: there is no file '{path}'")
    try:
        _SessionOptions().register_custom_ops_library(path)
    except Exception as failure:
        reason = str(failure).strip().splitlines()[0].rstrip(". ")
        raise ModelError(f"--custom-ops: ONNX Runtime does not load '{path}': {reason}") from failure


def session_options() -> Any:
    """Return options for a session with the libraries in use."""
    options = _SessionOptions()
    for path in _LOADED.get():
        options.register_custom_ops_library(path)
    return options


@contextmanager
def in_the_tools() -> Iterator[None]:
    """Let sessions that ONNX Runtime's own tools make load the libraries, too: they take no options from outside."""
    if not _LOADED.get():
        yield
        return
    ort.SessionOptions = session_options
    try:
        yield
    finally:
        ort.SessionOptions = _SessionOptions


def in_use() -> tuple[str, ...]:
    """Return the libraries in use."""
    return _LOADED.get()


@functools.cache
def _known() -> frozenset[tuple[str, str]]:
    """Operators of ONNX Runtime itself, each as (domain, name)."""
    return frozenset((s.domain, s.name) for s in onnxruntime_pybind11_state.get_all_operator_schema())


def operators_of_libraries(model: Any) -> list[str]:
    """Return the operators that only a library can have, as "'Name' of the domain 'domain'"."""
    if _LOADED.get():
        return []  # what a library has, nobody tells
    return list(
        dict.fromkeys(
            f"'{name}' of the domain '{domain}'"
            for domain, name in _operators(model)
            if domain and (domain, name) not in _known()
        )
    )


def _operators(model: Any) -> Iterator[tuple[str, str]]:
    if isinstance(model, bytes):
        try:
            model = ir.from_proto(onnx.load_from_string(model))
        except Exception:  # whatever is wrong with it, the sentence of the session tells
            return
    if not isinstance(model, ir.Model):
        return
    local = {(f.domain, f.name) for f in model.functions.values()}
    for node in nodes_of(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) not in local:
            yield domain, node.op_type


def sentence_on(missing: Sequence[str]) -> str:
    """Say what to do about operators that ONNX Runtime does not have."""
    more = f" and {len(missing) - _MOST} more" if len(missing) > _MOST else ""
    which = "the operator" if len(missing) == 1 else "the operators"
    return (
        f"ONNX Runtime does not have {which} {', '.join(missing[:_MOST])}{more}: give the library that has it by "
        "--custom-ops LIB, or prune with --no-verify, which proves nothing"
    )
