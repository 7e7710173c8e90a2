"""The measurement in a browser: its page runs models in turns and sends what it measured, here with a stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import CHROMIUM

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "digits_resnet.onnx"

# As onnxruntime-web, but a run takes a fixed time on a clock of its own: 4 ms for the first model, 2 ms for the second.
_STAND_IN = """
let now = 0;
performance.now = () => now;
globalThis.ort = {
  env: { wasm: {} },
  Tensor: class { constructor(type, data, dims) { this.size = data.length; this.dims = dims; } },
  InferenceSession: { create: async (file) => ({ run: async (feeds) => {
    if (feeds.image.size !== 64) throw new Error("not the input of the model");
    now += file === "0.onnx" ? 4 : 2;
  } }) },
};
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_models_run_in_turns_in_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import in_browser

    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "ort.wasm.min.js").write_text(_STAND_IN)
    (dense, pruned), agent = in_browser.measure(tmp_path, [MODEL, MODEL], seconds=100)
    assert (dense, pruned) == (4, 2)
    assert "Chrome" in agent
