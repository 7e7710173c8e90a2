"""How much of a model can be pruned exactly: the share of weight parameters with a free exact atom on some axis.

At least 95 % of every CNN and MLP, 90 % of every transformer and RNN; exceptions are listed with what holds them.
"""

from __future__ import annotations

import functools
from pathlib import Path

import oracle
import pytest
import zoo

from onnxprune.structure.analysis import analyse

SEQUENCE_MODULES = {"transformers", "language", "recurrent", "swin", "windowed"}
REAL_SEQUENCE_MODELS = {"dtln_1", "silero_vad_16k_op15", "magika_v1", "vittrack"}

_WIDTH = "its trunk is normalised over the channels, so its width is inexact, and the other axis is "
EXCEPTIONS = {
    # name: (share that is reached at least, what holds the rest)
    "convnext": (0.71, _WIDTH + "the next stage's trunk, or none as in depthwise kernels"),
    "swin": (0.81, _WIDTH + "the next stage's trunk, or the input or output of the graph"),
    "llama": (0.89, _WIDTH + "the vocabulary, an output of the graph"),
    "gqa_broadcast": (0.89, _WIDTH + "the vocabulary, an output of the graph"),
    "gqa_sdpa": (0.89, _WIDTH + "the vocabulary, an output of the graph"),
    "magika_v1": (0.88, _WIDTH + "the classes, an output of the graph"),
    "basic_pitch_nmp": (0.44, "a filter bank in front: its channels become the frequencies that a Conv slides over"),
    "dtln_1": (0.0, "both LSTM states are inputs and outputs of the graph"),
    "silero_vad_16k_op15": (
        0.57,
        "its LSTM state is an input and output, and an If of unlike branches stands before it",
    ),
    "light_shufflenet": (0.76, "its shuffles do not divide: 34 channels a group, spread over 4 groups"),
}


def _expect(name: str, load: oracle.Load, wanted: float) -> None:
    prunable, weights = analyse(load()).prunable_share()
    wanted, _ = EXCEPTIONS.get(name, (wanted, ""))
    assert prunable >= wanted * weights


@pytest.mark.skipif(not zoo.HAS_TORCH, reason="the zoo is built with PyTorch, which is not installed")
@pytest.mark.parametrize(("name", "exporter", "opset"), zoo.cases(), ids=["-".join(map(str, c)) for c in zoo.cases()])
def test_architectures(name: str, exporter: str, opset: int) -> None:
    model = zoo.export(name, exporter, opset)
    sequence = zoo.ARCHITECTURES[name].module in SEQUENCE_MODULES
    _expect(name, lambda: oracle.normalised(model), 0.90 if sequence else 0.95)


@pytest.mark.zoo
@pytest.mark.skipif(not oracle.shared_zoo(), reason="no folder of real models (ONNXPRUNE_SHARED)")
@pytest.mark.parametrize("path", oracle.shared_zoo(), ids=lambda path: path.stem)
def test_real_models(path: Path) -> None:
    wanted = 0.90 if path.stem in REAL_SEQUENCE_MODELS else 0.95
    _expect(path.stem, functools.partial(oracle.normalised, path), wanted)


@pytest.mark.zoo
@pytest.mark.parametrize("path", oracle.light_models(), ids=lambda path: path.stem)
def test_full_size_models(path: Path) -> None:
    _expect(path.stem, functools.partial(oracle.normalised, path), 0.95)
