"""The library: each function has an example that runs, results are short as text and tables in a notebook."""

from __future__ import annotations

import doctest
import inspect
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import random, two_layers

import onnxprune
from onnxprune import model_io
from onnxprune.verification.notebook import MOST_ROWS, in_notebook

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = [name for name in onnxprune.__all__ if inspect.isfunction(getattr(onnxprune, name))]


def test_the_library_offers_what_the_command_line_does() -> None:
    assert set(FUNCTIONS) >= {"prune", "inspect", "verify", "compare", "sweep", "sensitivity", "save"}
    assert onnxprune.__version__.count(".") >= 2


@pytest.mark.parametrize("name", [*FUNCTIONS, "Recipe"])
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(onnxprune, name), name)
    assert test.examples, f"onnxprune.{name} has no example"
    told: list[str] = []
    result = doctest.DocTestRunner().run(test, out=told.append)
    assert result.failed == 0, "".join(told)


# -- what a person sees


class Cells(HTMLParser):
    """The texts of a page, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def texts(html: str) -> list[str]:
    cells = Cells()
    cells.feed(html)
    assert not cells.open
    return cells.texts


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each that a function returns."""
    folder = tmp_path_factory.mktemp("api")
    model, half = folder / "net.onnx", folder / "half.onnx"
    model_io.save(two_layers(32), model)
    data = {"x": random(24, 8), "label": np.arange(24) % 4}
    result = onnxprune.prune(model, sparsity=0.5, structure="channels", round_to="none", eval_data=data)
    onnxprune.save(result, half)
    return {
        "Result": result,
        "Inspection": onnxprune.inspect(model),
        "Verdict": onnxprune.compare(model, half, eval_data=data),
        "Check": onnxprune.verify(str(model), half),
        "Scan": onnxprune.sensitivity(model, eval_data=data),
        "Sweep": onnxprune.sweep(model, sparsity=(0.3, 0.5), structure="channels,blocks", eval_data=data),
    }


@pytest.mark.parametrize("name", ["Result", "Inspection", "Verdict", "Check", "Scan", "Sweep"])
def test_results_are_short_as_text_and_whole_in_a_notebook(name: str, shown: dict[str, Any]) -> None:
    text = repr(shown[name])
    assert text.startswith(f"<{name}") and len(text) < 250 and "\n" not in text
    assert "".join(texts(shown[name]._repr_html_()))


def test_a_notebook_shows_the_figures(shown: dict[str, Any]) -> None:
    assert {"file (bytes)", "parameters", "before", "after"} <= set(texts(shown["Result"]._repr_html_()))
    assert "neurons" in texts(shown["Inspection"]._repr_html_())
    table = texts(shown["Sweep"]._repr_html_())
    assert "0.3" in table and any("nothing to prune" in text for text in table)
    trial = repr(shown["Sweep"].trials[0])
    assert trial.startswith("<Trial 0.3 channels: loses ") and "of the latency" in trial


def test_texts_of_files_do_no_harm_in_a_notebook() -> None:
    rows = [("<script>", 1, 0.5, True)] * (MOST_ROWS + 2)
    html = in_notebook("<b>", ("<i>",), rows, ["<u>"])
    assert "<script>" not in html and "<u>" not in html and "2 more rows" in html
    assert "<b>" in texts(html) and "True" in texts(html)


def test_comparing_models_in_memory_names_no_file() -> None:
    other = two_layers(32)
    other.graph.inputs[0].name = "z"
    for a, b in ((two_layers(32), other), (two_layers(32), model_io.to_proto(other))):
        with pytest.raises(onnxprune.VerificationError) as error:
            onnxprune.compare(a, b)
        assert "Model(" not in str(error.value) and len(str(error.value)) < 300
