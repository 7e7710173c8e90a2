"""Limits: how they are written, and that each is checked on the figure it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_models import conv_net

import onnxprune
from onnxprune.errors import RecipeError, VerificationError
from onnxprune.pipeline.result import measured_figures
from onnxprune.recipe import requirements
from onnxprune.verification.evaluate import MeasuredMetric
from onnxprune.verification.requirements import check_requirements

TRAINED = Path(__file__).resolve().parents[2] / "models" / "digits_mlp.onnx"


@pytest.mark.parametrize("text", ["latency<=0.6", "size < .25", " sparsity >= 0.9", "output_change>1e-3"])
def test_a_limit_is_a_figure_a_comparison_and_a_number(text: str) -> None:
    limit = requirements.parse(text)
    assert str(requirements.parse(str(limit))) == str(limit)


@pytest.mark.parametrize("text", ["latency", "latency=0.5", "latency<=fast", "latency<=0.5.1", "", "<=1", "a b<=1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="latency<=0.6"):
        requirements.parse(text)


def test_an_unknown_figure_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match=r"'speed'.*latency, size"):
        requirements.parse("speed>=2")


@pytest.mark.parametrize(
    ("text", "measured", "holds"),
    [
        ("size<=0.5", 0.5, True),
        ("size<0.5", 0.5, False),
        ("size<=0.5", 0.51, False),
        ("sparsity>=0.9", 0.9, True),
        ("sparsity>0.9", 0.9, False),
        ("size<=0.5", float("nan"), False),
        ("size>=0.5", float("nan"), False),
    ],
)
def test_comparisons(text: str, measured: float, holds: bool) -> None:
    assert requirements.parse(text).holds(measured) is holds


def test_the_sentence_names_what_was_measured_and_what_was_wanted() -> None:
    wanted = [requirements.parse(t) for t in ("size<=0.25", "sparsity>=0.9", "macs<=1")]
    with pytest.raises(VerificationError) as missed:
        check_requirements(wanted, {"size": 0.3, "sparsity": 0.95})
    assert str(missed.value) == (
        "no model was written, because size is 0.3 (wanted <= 0.25) and macs could not be measured (wanted <= 1)"
    )


def test_every_documented_figure_is_measured() -> None:
    result = onnxprune.prune(TRAINED, sparsity=0.5, structure="channels", eval_data=TRAINED.with_suffix(".npz"))
    measured = measured_figures(result)
    assert set(measured) == set(requirements.FIGURES)
    verdict = result.verdict
    assert verdict is not None and verdict.metric is not None
    assert measured["parameters"] == verdict.after.parameters / verdict.before.parameters
    assert measured["metric_drop"] == verdict.metric.before - verdict.metric.after
    error = replace(result, verdict=replace(verdict, metric=MeasuredMetric("mse", 1.0, 1.5, 1, higher_is_better=False)))
    assert measured_figures(error)["metric_drop"] == 0.5  # more error is a drop


def test_prune_raises_when_a_limit_is_missed() -> None:
    settings = {"sparsity": 0.5, "structure": "channels", "latency": False}
    onnxprune.prune(conv_net(64), require=["parameters<=0.6"], **settings)
    with pytest.raises(VerificationError, match="parameters is"):
        onnxprune.prune(conv_net(64), require=["parameters<=0.3"], **settings)


@pytest.mark.parametrize(
    ("limit", "settings", "why"),
    [
        ("metric_drop<=0", {}, "--eval-data"),
        ("latency<=1", {"latency": False}, "latency is not measured"),
        ("size<=1", {"verification": False}, "--no-verify"),
    ],
)
def test_limits_on_what_is_not_measured_are_refused_before_the_work(limit: str, settings: dict, why: str) -> None:
    stages: list[str] = []
    with pytest.raises(RecipeError, match=why):
        onnxprune.prune(conv_net(), sparsity=0.5, require=[limit], progress=stages.append, **settings)
    assert stages == []
