"""The whole run with magnitude scores on every model: verification inside the run compares removed with masked."""

from __future__ import annotations

from pathlib import Path

import onnx
import oracle
import pytest
import zoo

import onnxprune
from onnxprune.errors import NothingToPrune

SHARES = (0.3, 0.6)
NEVER = {"dtln_1"}  # both LSTM states are inputs and outputs of the graph


def _prune(model: str | Path | onnx.ModelProto, share: float) -> None:
    result = onnxprune.prune(model, sparsity=share, structure="channels", latency=False)
    assert result.verdict is not None
    assert result.kept
    assert result.sparsity <= share + 0.01


@pytest.mark.zoo
@pytest.mark.skipif(not zoo.HAS_TORCH, reason="the zoo is built with PyTorch, which is not installed")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("name", "exporter", "opset"), zoo.cases(), ids=["-".join(map(str, c)) for c in zoo.cases()])
def test_architectures(name: str, exporter: str, opset: int, share: float) -> None:
    _prune(zoo.export(name, exporter, opset), share)


@pytest.mark.zoo
@pytest.mark.skipif(not oracle.shared_zoo(), reason="no folder of real models (ONNXPRUNE_SHARED)")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("path", oracle.shared_zoo(), ids=lambda path: path.stem)
def test_real_models(path: Path, share: float) -> None:
    if path.stem in NEVER:
        with pytest.raises(NothingToPrune):
            _prune(path, share)
    else:
        _prune(path, share)


@pytest.mark.zoo
@pytest.mark.parametrize("path", oracle.light_models(), ids=lambda path: path.stem)
def test_full_size_models(path: Path) -> None:
    _prune(path, 0.3)
