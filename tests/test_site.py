"""The documentation as a site: it builds, a browser finds every kind of model in it, and it asks no other address."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, chromium_until, requests

ROOT = Path(__file__).resolve().parents[1]
SEARCHED = {
    "YOLO": "howto/yolo/", "BERT": "howto/bert/", "Keras": "howto/keras/", "scikit-learn": "howto/scikit-learn/",
    "Whisper": "howto/speech/",
}  # fmt: skip

# Types each word into the search as a visitor does, waits for what is found, and sends it all to the server.
_PROBE = """<script>
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
async function search(word) {
  const field = document.querySelector("[data-md-component=search-query]");
  field.focus();
  field.value = word;
  for (let turn = 0; turn < 300; turn++) {
    field.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true, key: word.at(-1) }));
    await wait(200);
    const links = [...document.querySelectorAll("[data-md-component=search-result] a")].map(link => link.href);
    const marked = [...document.querySelectorAll("[data-md-component=search-result] mark")].map(m => m.textContent);
    const first = word.split("-")[0].toLowerCase();
    if (links.length && marked.some(text => text.toLowerCase().startsWith(first))) return links;
  }
  return [];
}
addEventListener("load", async () => {
  const found = { width: document.documentElement.scrollWidth, view: window.innerWidth, links: {} };
  document.getElementById("__search").checked = true;
  for (const word of WORDS) found.links[word] = await search(word);
  await fetch("/found", { method: "POST", body: JSON.stringify(found) });
});
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'onnxprune[docs]'")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder / "site")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_the_site_builds(site: Path) -> None:
    assert "--sparsity" in (site / "reference" / "cli" / "index.html").read_text()


class Served(http.server.ThreadingHTTPServer):
    """A folder over HTTP, with the probe in every page, and what the probe found."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.found: dict[str, Any] = {}
        self.done = threading.Event()


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        page = path / "index.html" if path.is_dir() else path
        if page.suffix != ".html" or not page.exists():
            return super().do_GET()
        probe = _PROBE.replace("WORDS", json.dumps(list(SEARCHED)))
        content = probe.join(page.read_text(encoding="utf-8").rsplit("</body>", 1)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def do_POST(self) -> None:
        self.server.found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(site: Path) -> Iterator[Served]:
    server = Served(site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [500, 1280])  # 500 is the narrowest window that Chromium opens
def test_in_a_browser_every_kind_of_model_is_found(served: Served, tmp_path: Path, width: int) -> None:
    log, address = tmp_path / "net.json", f"http://127.0.0.1:{served.server_port}/"
    said = chromium_until(served.done, address, f"--log-net-log={log}", folder=tmp_path, width=width)
    assert served.done.is_set() and "CONSOLE" not in said
    assert [url for url in requests(log) if not url.startswith(address)] == []
    assert served.found["width"] <= served.found["view"]
    for word, page in SEARCHED.items():
        links = served.found["links"][word]
        assert any(link.startswith(address + page) for link in links), f"{word}: {links}"
