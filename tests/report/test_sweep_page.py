"""The page of a sweep: all inside, nothing asked of a network, a click on a point shows its command."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium, requests

pytest.importorskip("altair", reason="altair is not installed: pip install 'onnxprune[sweep]'")
pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: pip install 'onnxprune[sweep]'")

from onnxprune.pipeline.sweep import Sweep
from onnxprune.pipeline.trials import Trial
from onnxprune.recipe.recipe import make_recipe
from onnxprune.report.sweep import render_sweep

METRIC = {"name": "accuracy", "before": 0.99, "samples": 360, "higher_is_better": True}


def trial(structure: str, sparsity: float, accuracy: float, latency: float, command: str = "") -> Trial:
    figures = {
        "metric_drop": 0.99 - accuracy,
        "latency": latency,
        "size": latency,
        "macs": latency,
        "sparsity": sparsity,
    }
    varied = {"sparsity": sparsity, "structure": structure}
    recipe = make_recipe(sparsity=sparsity, structure=structure)
    return Trial(varied, recipe, command or f"onnxprune net.onnx -s {sparsity}", figures, {**METRIC, "after": accuracy})


@pytest.fixture
def swept() -> Sweep:
    trials = (
        trial("channels", 0.3, 0.98, 0.7, "onnxprune 'a </script><b>.onnx' -s 0.3"),
        trial("channels", 0.6, 0.9, 0.4),
        trial("weights", 0.5, 0.97, 1.0),
        Trial({"sparsity": 0.9, "structure": "blocks"}, make_recipe(sparsity=0.9), "", failed="nothing <to> prune"),
    )
    return Sweep("net.onnx", trials, {"0.5 tiles": "it contradicts <itself>"})


def test_all_is_inside_and_texts_do_no_harm(swept: Sweep) -> None:
    page = render_sweep(swept)
    rest = re.sub(r"(?s)<script>.*?</script>", "", page)
    assert not re.search(r"https?://|<link[^>]+href=\"(?!data:)|<script[^>]+src", rest)
    assert "default-src 'none'" in rest and "unsafe-eval" not in rest
    assert "nothing &lt;to&gt; prune" in rest and "contradicts &lt;itself&gt;" in rest
    assert page.count("</script>") == 2 and "<b>.onnx" not in page
    assert len(re.findall(r"\d \*</b>", rest)) == 6  # the two cheaper ones, against each of three costs


PROBE = """<script>
setTimeout(() => {
  const marks = [...document.querySelectorAll("#chart-latency path[aria-roledescription=point]")];
  const text = () => document.getElementById("command").textContent;
  const found = { width: document.documentElement.scrollWidth, view: window.innerWidth, marks: marks.length };
  const at = marks.find(m => (m.getAttribute("aria-label") || "").includes("0.6")).getBoundingClientRect();
  const place = { bubbles: true, clientX: at.x + at.width / 2, clientY: at.y + at.height / 2 };
  marks.find(m => m.getAttribute("aria-label").includes("0.6")).dispatchEvent(new MouseEvent("click", place));
  found.point = text();
  document.querySelector("tr[data-number='0'] button").click();
  found.row = text();
  const probe = document.createElement("pre"); probe.id = "probe"; probe.textContent = JSON.stringify(found);
  document.body.append(probe);
}, 1500);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [500, 1280])
def test_in_a_browser_a_click_shows_the_command(swept: Sweep, tmp_path: Path, width: int) -> None:
    path, log = tmp_path / "page.html", tmp_path / "net.json"
    path.write_text(PROBE.join(render_sweep(swept).rsplit("</body>", 1)), encoding="utf-8")
    done = chromium(path, "--dump-dom", "--virtual-time-budget=6000", f"--log-net-log={log}", width=width)
    assert "CONSOLE" not in done.stderr and requests(log) == []
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert probe is not None
    found = json.loads(html.unescape(probe[1]))
    assert found["width"] <= found["view"] and found["marks"] >= 3
    assert found["point"] == "onnxprune net.onnx -s 0.6" and "'a </script><b>.onnx'" in found["row"]
