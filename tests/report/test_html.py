"""The report: one page, complete, self-contained, and tried in a real browser."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, chromium, requests
from small_models import conv_net, set_array, two_layers

import onnxprune
from onnxprune import Result, model_io
from onnxprune.cli import main
from onnxprune.pipeline.result import Reached
from onnxprune.pipeline.search import Try
from onnxprune.report.curves import training_curves
from onnxprune.report.html import render
from onnxprune.report.layers import layers
from onnxprune.report.next_steps import Files

TRAINED = Path(__file__).resolve().parents[2] / "models" / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def result() -> Result:
    return onnxprune.prune(
        TRAINED,
        sparsity=0.5,
        structure="channels",
        eval_data=TRAINED.with_suffix(".npz"),
        pack="auto",
        require=["latency<=2"],
    )


@pytest.fixture(scope="module")
def page(result: Result) -> str:
    return render(model_io.load(TRAINED), result, Files(str(TRAINED), "out.onnx"))


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(style|script)>.*?</\1>", "", page))).split())


def test_the_verdict_comes_first(page: str, result: Result) -> None:
    text = text_of(page)
    assert result.verdict is not None and result.verdict.metric is not None
    found = [text.index(part) for part in ("smaller file", "verified in ONNX Runtime", "Before and after", "Layers")]
    assert found == sorted(found)
    assert f"{result.verdict.metric.before:.4f} → {result.verdict.metric.after:.4f}" in text
    assert "Limits kept: latency<=2" in text


def test_every_figure_layer_group_and_reason_is_there(page: str, result: Result) -> None:
    text = text_of(page)
    assert result.verdict is not None
    assert f"{result.verdict.before.macs:,}" in text and f"{result.verdict.after.file_bytes:,}" in text
    found = onnxprune.inspect(TRAINED)
    assert all(w.name in text for w in found.weights) and all(g.name in text for g in found.groups)
    reasons = {reason.split(": ", 1)[-1] for w in found.weights for reason in w.pinned}
    assert reasons and all(reason in text for reason in reasons)
    assert json.dumps({"sparsity": 0.5})[1:-1] in text  # the recipe
    assert "onnxprune-record/1" in text and str(result.source.sha256) in text


def test_nothing_is_fetched(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    assert not re.search(r"https?://|//[a-z]", re.sub(r"(?s)<script>.*?</script>", "", page))
    assert not re.search(r"<(img|iframe|object|embed)|@import|url\(|fetch\(|XMLHttpRequest|import\(", page)
    assert "default-src 'none'" in page


def test_every_plot_has_a_text_alternative(page: str) -> None:
    plots = re.findall(r"<svg[^>]*>", page)
    assert len(plots) > 10
    assert all('role="img"' in plot and re.search(r'aria-label="[^"]+"', plot) for plot in plots)


def test_elements_are_closed_in_order(page: str) -> None:
    class Checker(HTMLParser):
        stack: list[str] = []

        def handle_starttag(self, tag: str, attrs: list) -> None:
            if tag not in ("meta", "link", "br"):
                self.stack.append(tag)

        def handle_startendtag(self, tag: str, attrs: list) -> None: ...

        def handle_endtag(self, tag: str) -> None:
            assert self.stack.pop() == tag

    checker = Checker()
    checker.feed(page)
    assert checker.stack == []


def test_names_from_the_model_are_escaped() -> None:
    model = two_layers()
    model.graph.initializers["w1"].name = "<script>alert(1)</script>"
    result = onnxprune.prune(model, sparsity=0.5, latency=False)
    page = render(model, result, Files("<b>.onnx"))
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "<b>.onnx" not in page


def test_counts_of_a_layer_add_up() -> None:
    for structure, model in (("weights", two_layers(64)), ("channels", conv_net(64))):
        result = onnxprune.prune(model, sparsity=0.5, structure=structure, latency=False)
        rows = {layer.name: layer for layer in layers(model, result)}
        assert set(rows) == ({"w1", "w2"} if structure == "weights" else {"w1", "w2", "w3"})
        for name, layer in rows.items():
            new = result.model.graph.initializers[name].const_value
            assert new is not None and layer.new_shape == tuple(new.shape)
            assert layer.kept == np.count_nonzero(new.numpy()) == sum(layer.kept_by_size)
            assert layer.total == sum(layer.kept_by_size) + sum(layer.removed_by_size)
            if structure == "weights" and layer.sparsity:
                last = max(i for i, n in enumerate(layer.removed_by_size) if n)
                assert last <= min(i for i, n in enumerate(layer.kept_by_size) if n)  # the smallest go


def test_a_search_is_drawn(result: Result) -> None:
    tries = (Try(0.75, 0.4), Try(0.25, 0.9), Try(0.5, 0.55))
    reached = Reached("target_latency", 0.6, 0.55, 0.5, tries)
    page = render(model_io.load(TRAINED), replace(result, target=reached), Files("m.onnx"))
    assert 'aria-label="target latency by sparsity: 0.9 at 25.0 %, 0.55 at 50.0 %, 0.4 at 75.0 %"' in page
    assert page.count("<circle") == 3 and "Trade-off" not in render(model_io.load(TRAINED), result, Files("m.onnx"))


def trained(*turns: tuple[list[float], list[float | None]]) -> list[dict[str, Any]]:
    """Turns of pruning and training as a result holds them, each with losses and metrics by epoch."""
    return [
        {
            "iteration": number,
            "trainings": [
                {
                    "metric_name": "accuracy",
                    "history": [
                        {"epoch": i, "loss": v, "metric": m} for i, (v, m) in enumerate(zip(*turn, strict=True))
                    ],
                }
            ],
        }
        for number, turn in enumerate(turns, 1)
    ]


def test_a_training_is_drawn_as_curves_with_axes(result: Result) -> None:
    turns = trained(([2.0, 1.0], [0.5, 0.75]), ([1.5, 0.5], [0.7, 0.9]))
    loss, metric = training_curves(turns)
    assert loss.points == "0.0,0.0 128.0,85.3 256.0,42.7 384.0,128.0" and (loss.low, loss.high) == (0.5, 2.0)
    assert (metric.name, metric.first, metric.last) == ("accuracy", 0.5, 0.9) and metric.prunings == (192.0,)
    page = render(model_io.load(TRAINED), replace(result, retraining=tuple(turns)), Files("m.onnx"))
    assert 'aria-label="training loss by epoch, from 2 to 0.5"' in page and "pruned again" in page


def test_a_training_without_metric_or_with_a_loss_that_is_no_number(result: Result) -> None:
    (loss,) = training_curves(trained(([1.0, float("nan")], [None, None])))
    assert loss.points == "0.0,128.0" and loss.epochs == 2
    assert training_curves([]) == []


def test_plots_have_axes_and_the_page_says_where_and_when(page: str) -> None:
    text = text_of(page)
    assert re.search(r"Made \d{4}-\d\d-\d\d \d\d:\d\d UTC on ", text) and "ONNX Runtime" in text
    assert page.count('<div class="axis"><span>0</span>') == page.count('aria-label="Weights by magnitude')
    assert "sha256 of the original" in text


def test_a_layer_of_zeros_has_no_plot() -> None:
    model = two_layers()
    set_array(model, "w2", np.zeros((32, 4), np.float32))
    result = onnxprune.prune(model, sparsity=0.25, latency=False)
    assert render(model, result, Files("m.onnx"))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "r.html"
    for extra, status in (([], 0), (["--dry-run"], 0), (["--require", "size<=0.1", "--force"], 1)):
        page.unlink(missing_ok=True)
        with pytest.raises(SystemExit) as left:
            main([str(TRAINED), "-s", "0.5", "-o", str(tmp_path / "o.onnx"), "--report", str(page), *extra])
        assert left.value.code == status and page.exists()  # evidence of a missed limit, too
    for wrong in (TRAINED, tmp_path / "o.onnx", tmp_path / "nowhere" / "r.html"):
        with pytest.raises(SystemExit) as left:
            main([str(TRAINED), "-s", "0.5", "-o", str(tmp_path / "o.onnx"), "--force", "--report", str(wrong)])
        assert left.value.code == 2
    assert TRAINED.read_bytes()[:1] != b"<"


# -- in Chromium ----------------------------------------------------------------------------------------------------

PROBE = """<script>
const head = n => document.querySelectorAll("#layers thead th")[n].querySelector("button");
const rows = () => [...document.querySelectorAll("#layers tbody tr")];
const column = n => rows().map(r => r.cells[n].dataset.value || r.cells[n].textContent);
const found = { width: document.documentElement.scrollWidth, view: window.innerWidth, columns: {} };
for (const n of [0, 3, 6]) { head(n).click(); const a = column(n); head(n).click(); found.columns[n] = [a, column(n)]; }
const probe = document.createElement("pre"); probe.id = "probe"; probe.textContent = JSON.stringify(found);
document.body.append(probe);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [500, 1280])  # 500 is the narrowest window that Chromium opens
def test_in_a_browser_tables_sort_and_nothing_goes_wrong(page: str, tmp_path: Path, width: int) -> None:
    path, log = tmp_path / "page.html", tmp_path / "net.json"
    path.write_text(page.replace("</body>", PROBE), encoding="utf-8")
    done = chromium(path, "--dump-dom", f"--log-net-log={log}", width=width)
    assert "CONSOLE" not in done.stderr and requests(log) == []
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert probe is not None
    found = json.loads(html.unescape(probe[1]))
    assert found["width"] <= found["view"]  # no sideways scrolling of the page itself
    names = found["columns"]["0"]
    assert names[0] == names[1][::-1] and len(set(names[0])) > 5
    for n in ("3", "6"):
        down, up = ([float(v) for v in values] for values in found["columns"][n])
        assert down == sorted(down, reverse=True) and up == sorted(up) and len(set(up)) > 2


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_browser_test_would_notice(tmp_path: Path) -> None:
    path, log = tmp_path / "page.html", tmp_path / "net.json"
    path.write_text("<script>console.error('wrong')</script><img src='http://127.0.0.1:9/x.png' alt=''>")
    done = chromium(path, "--dump-dom", f"--log-net-log={log}")
    assert "CONSOLE" in done.stderr and requests(log) == ["http://127.0.0.1:9/x.png"]
