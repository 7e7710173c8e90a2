"""Calls side by side: in this process or in others the results are the same, and so are the sentences of what fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elsewhere import end, where
from small_models import conv_net, random, two_layers

import onnxprune
from onnxprune.errors import OnnxPruneError, RecipeError
from onnxprune.graph.hints import give_hints, hints_of
from onnxprune.pipeline import target
from onnxprune.pipeline.search import highest_within
from onnxprune.runtime.jobs import check_jobs, count_jobs, each, with_jobs

pytest.importorskip("joblib", reason="joblib is not installed: pip install 'onnxprune[sweep]'")
pytest.importorskip("cloudpickle", reason="cloudpickle is not installed: pip install 'onnxprune[sweep]'")

ROOT = Path(__file__).resolve().parents[2]
MLP, DIGITS = ROOT / "models" / "digits_mlp.onnx", ROOT / "models" / "digits_mlp.npz"


def test_calls_run_in_other_processes_with_a_model_as_it_was() -> None:
    model = two_layers(8)
    give_hints(model, shapes={"x": (3, 8)})
    with with_jobs(2):
        results = dict(each(where, (model, "shared"), range(5)))
    assert [results[number][1] for number in range(5)] == list(range(5))
    assert os.getpid() not in {pid for pid, _, _ in results.values()}
    copy, text = results[0][2]
    assert text == "shared" and hints_of(copy).shapes == {"x": (3, 8)}
    np.testing.assert_array_equal(
        copy.graph.initializers["w1"].const_value.numpy(), model.graph.initializers["w1"].const_value.numpy()
    )


def test_one_job_stays_in_this_process_and_takes_items_one_by_one() -> None:
    taken: list[int] = []

    def items() -> Any:
        for number in range(3):
            taken.append(number)
            yield number

    assert count_jobs() == 1
    calls = each(where, None, items())
    assert next(calls)[1][0] == os.getpid() and taken == [0]


def test_what_cannot_be_handed_over_is_told() -> None:
    with pytest.raises(RecipeError, match="--jobs: what was given cannot be handed to other processes"):
        list(each(where, (number for number in range(2)), [1, 2], jobs=2))


def test_a_process_that_ends_is_told() -> None:
    with pytest.raises(OnnxPruneError, match="--jobs: a process ended .* fewer jobs"):
        list(each(end, None, [1, 2], jobs=2))


def test_no_jobs_are_refused() -> None:
    with pytest.raises(RecipeError, match="--jobs: give a number of jobs"):
        check_jobs(0)


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_data": DIGITS, "levels": (0.5, 0.9)},
        {"calibration": {"x": random(20, 3, 12, 12)}, "structure": "channels", "levels": (0.5,)},
        {"calibration": {"x": random(20, 3, 12, 12)}, "levels": (0.5,)},
    ],
)
def test_a_scan_is_the_same(settings: dict[str, Any]) -> None:
    model = MLP if "eval_data" in settings else conv_net(16)
    alone, beside = (onnxprune.sensitivity(model, jobs=jobs, **settings) for jobs in (None, 2))
    np.testing.assert_array_equal(alone.table.errors, beside.table.errors)
    assert alone.table.names == beside.table.names


def test_a_search_is_the_same() -> None:
    settings: dict[str, Any] = {"max_drop": 0.02, "eval_data": DIGITS, "latency": False}
    alone, beside = (onnxprune.prune(MLP, jobs=jobs, **settings) for jobs in (None, 3))
    assert alone.target == beside.target
    for name, value in alone.model.graph.initializers.items():
        np.testing.assert_array_equal(
            value.const_value.numpy(),  # type: ignore[union-attr]
            beside.model.graph.initializers[name].const_value.numpy(),  # type: ignore[union-attr]
        )


def test_a_search_with_a_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'onnxprune[retrain]'")
    monkeypatch.setattr(target, "highest_within", partial(highest_within, most_tries=3))
    data = {name: array[:120] for name, array in np.load(DIGITS).items()}
    training = {"epochs": 1, "device": "cpu"}
    results = [
        onnxprune.prune(
            MLP, jobs=jobs, max_drop=0.1, data=data, eval_data=DIGITS, retrain=training, latency=False,
            checkpoint=tmp_path / str(jobs),
        )
        for jobs in (None, 2)
    ]  # fmt: skip
    assert results[0].target == results[1].target
    assert results[0].figures["metric"]["after"] == results[1].figures["metric"]["after"]


def test_the_page_about_clusters_runs(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'dask[distributed]'")
    text = (ROOT / "docs" / "howto" / "cluster.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "page.py").write_text(block)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "DASK_DISTRIBUTED__DASHBOARD__ENABLED": "False"}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    scan, swept, result = done.stdout.splitlines()[-3:]
    assert scan == repr(onnxprune.sensitivity(MLP, eval_data=DIGITS, levels=(0.5, 0.9)))
    assert swept.startswith("<Sweep of") and result.startswith("<Result: ")
