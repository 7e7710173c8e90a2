"""Latency and bytes in a browser: models in onnxruntime-web's WASM backend, in headless Chromium.

    npm install --prefix WORK onnxruntime-web@1.30.0
    python benchmarks/in_browser.py WORK dense.onnx pruned.onnx [...]     ->  benchmarks/results/browser.json

Pairs of models run in turns in one page: one thread, batches of one, the fastest of 61 measurements, each of as many
runs as take 4 ms. A browser has a coarse clock, and no clock of CPU time: what else runs only adds to it. Bytes are
those of the file, and of the file as a server sends it with gzip. Nothing but this machine is asked for.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gzip
import http.server
import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from onnxprune import model_io, runtime
from onnxprune.structure.machine import processor

RESULTS = Path(__file__).parent / "results" / "browser.json"
RUNS, WARM = 61, 5
_PAGE = """<!doctype html><meta charset="utf-8"><script src="ort/ort.wasm.min.js"></script><script>
async function main() {
  const { files, feeds, runs, warm } = await (await fetch("task.json")).json();
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("ort/", location).href;
  const sessions = [];
  for (const file of files)
    sessions.push(await ort.InferenceSession.create(file, { executionProviders: ["wasm"] }));
  const inputs = {};
  for (const [name, { type, dims }] of Object.entries(feeds)) {
    const count = dims.reduce((a, b) => a * b, 1);
    inputs[name] = new ort.Tensor(type, Float32Array.from({ length: count }, (_, i) => ((i * 37) % 101) / 101), dims);
  }
  const times = files.map(() => []), repeats = files.map(() => 1);
  for (let run = 0; run < runs + warm; run++)
    for (let i = 0; i < sessions.length; i++) {
      const start = performance.now();
      for (let j = 0; j < repeats[i]; j++) await sessions[i].run(inputs);
      const time = (performance.now() - start) / repeats[i];
      if (run >= warm) times[i].push(time);
      else repeats[i] = Math.ceil(4 / Math.max(time, 0.1));
    }
  return { times, agent: navigator.userAgent };
}
main().then((done) => done, (error) => ({ error: String(error) }))
  .then((done) => fetch("result", { method: "POST", body: JSON.stringify(done) }));
</script>"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and keeps what the page sends back."""

    answer: dict[str, Any] = {}
    done = threading.Event()

    def do_POST(self) -> None:
        """Take the result."""
        Server.answer = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        Server.done.set()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def measure(package: Path, files: list[Path], seconds: float = 300.0) -> tuple[list[float], str]:
    """The milliseconds of each model, and the browser.

    Args:
        package: The folder of onnxruntime-web, as npm installs it.
        files: Models with the same inputs.
        seconds: How long the page may take.

    Raises:
        RuntimeError: The page fails, or takes longer.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ort").symlink_to((package / "dist").resolve())
        for number, file in enumerate(files):
            shutil.copy(file, folder / f"{number}.onnx")
        sample = runtime.one_sample(model_io.load(files[0]))
        feeds = {key: {"type": "float32", "dims": list(array.shape)} for key, array in sample.items()}
        task = {"files": [f"{i}.onnx" for i in range(len(files))], "feeds": feeds, "runs": RUNS, "warm": WARM}
        (folder / "task.json").write_text(json.dumps(task))
        (folder / "index.html").write_text(_PAGE)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=name))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Server.done.clear()
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={name}/profile",
            address,
        ]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            finished = Server.done.wait(seconds)
        finally:
            browser.terminate()
            browser.wait(20)
            server.shutdown()
    if not finished or "error" in Server.answer:
        raise RuntimeError(Server.answer.get("error", f"the page gave no answer within {seconds:g} s"))
    return [min(times) for times in Server.answer["times"]], Server.answer["agent"]


def sizes(file: Path) -> dict[str, int]:
    """The bytes of a file, and those that are sent."""
    content = file.read_bytes()
    return {"bytes": len(content), "gzip": len(gzip.compress(content, 6))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("models", type=Path, nargs="+", help="pairs: dense, pruned")
    arguments = parser.parse_args()
    package = arguments.work / "node_modules" / "onnxruntime-web"
    version = json.loads((package / "package.json").read_text())["version"]
    results: dict[str, Any] = {"onnxruntime-web": version, "processor": processor(), "models": {}}
    if RESULTS.exists():
        results["models"] = json.loads(RESULTS.read_text())["models"]
    for dense, pruned in zip(arguments.models[::2], arguments.models[1::2], strict=True):
        times, agent = measure(package, [dense, pruned])
        results["browser"] = next(word for word in agent.split() if "Chrome/" in word)
        results["date"] = datetime.date.today().isoformat()
        results["models"][f"{dense.stem} to {pruned.stem}"] = {
            side: {"milliseconds": round(time, 2), **sizes(file)}
            for side, time, file in zip(("dense", "pruned"), times, (dense, pruned), strict=True)
        }
        print(dense.stem, results["models"][f"{dense.stem} to {pruned.stem}"], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
