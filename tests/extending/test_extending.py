"""What docs/extending.md says is true: its packages are installed, found and used, and are as short as it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, random

import onnxprune
import onnxprune.passes
from onnxprune import model_io

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
PACKAGES = HERE / "packages"
ROOT = HERE.parents[1]
MLP, TRAIN, TEST = (ROOT / "models" / name for name in ("digits_mlp.onnx", "digits_train.npz", "digits_mlp.npz"))
FILES = {"operator": 3, "criterion": 1, "allocation": 1, "recovery": 1, "granularity": 1, "metric": 1, "pass": 1}
"""How many files each takes."""


def install(folder: Path, name: str) -> Path:
    """Put a package where pip would: its modules, and its name and entry points in a .dist-info folder."""
    for module in (PACKAGES / name).glob("*.py"):
        shutil.copy(module, folder)
    project = tomllib.loads((PACKAGES / name / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    sections = ("\n".join([f"[{group}]", *(f"{n} = {m}" for n, m in entries.items())]) for group, entries in groups)
    (info / "entry_points.txt").write_text("\n".join(sections))
    return folder


def command(*arguments: object, first: Path) -> dict[str, Any]:
    """Run the command line with a folder that is looked into first; its JSON."""
    path = os.pathsep.join([str(first), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    line = [sys.executable, "-m", "onnxprune", *map(str, arguments), "--json"]
    done = subprocess.run(line, env=environment, cwd=first, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_each_takes_as_many_files_as_it_says_and_is_in_the_page() -> None:
    assert {folder.name for folder in PACKAGES.iterdir()} == set(FILES)
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for name, count in FILES.items():
        modules = sorted((PACKAGES / name).glob("*.py"))
        assert len(modules) == count
        for module in [*modules, HERE / "field.txt"]:
            assert module.read_text().strip() in page, f"docs/extending.md has another {module.name}"


def test_every_registry_is_in_the_page() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    folders = (Path(onnxprune.__path__[0]), Path(onnxprune.passes.__path__[0]))
    sources = {path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py")}
    groups = {group for text in sources for group in re.findall(r'Plugins\(\s*"([^"]+)"', text)}
    assert len(groups) >= 15
    assert {group for group in groups if f"`{group}`" not in page} == set()


def test_methods_of_all_packages_are_listed(tmp_path: Path) -> None:
    for name in FILES:
        install(tmp_path, name)
    listed = {(entry["setting"], entry["name"]) for entry in command("methods", first=tmp_path)["settings"]}
    added = {("criterion", "relative"), ("allocation", "by-size"), ("recover", "gain"), ("structure", "rows")}
    assert added <= listed


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("criterion", ("--criterion", "relative")),
        ("allocation", ("--allocation", "by-size")),
        ("recovery", ("--recover", "gain", "--calibration", TEST)),
        ("granularity", ("--structure", "rows", "--ends", "prune")),
    ],
)
def test_a_method_is_used(name: str, flags: tuple[object, ...], tmp_path: Path) -> None:
    install(tmp_path, name)
    out = tmp_path / "out.onnx"
    told = command(MLP, "-s", 0.5, "-o", out, *flags, first=tmp_path)
    assert abs(told["sparsity"] - 0.5) < 0.02
    model = ir.load(out)
    zeros = {n: v.const_value.numpy() == 0 for n, v in model.graph.initializers.items() if v.const_value is not None}
    if name == "granularity":
        assert any(z.ndim == 2 and (z.all(axis=0).any() or z.all(axis=1).any()) for z in zeros.values())
    if name == "allocation":
        large, *_, small = sorted((z for z in zeros.values() if z.ndim == 2), key=lambda z: -z.size)
        assert large.mean() > small.mean()
    if name == "recovery":
        assert told["steps"][0]["recovery"]["after"] < told["steps"][0]["recovery"]["before"]


def test_a_metric_is_measured(tmp_path: Path) -> None:
    install(tmp_path, "metric")
    told = command(
        MLP,
        "-s",
        0.9,
        "--dry-run",
        "--eval-data",
        TEST,
        "--metric",
        "top3",
        "--require",
        "metric_drop<=1",
        first=tmp_path,
    )
    assert told["metric"]["name"] == "top3" and told["metric"]["before"] > told["metric"]["after"]


def scaled() -> ir.Model:
    """Two layers with a Scaler between them, of other numbers for each feature."""
    numbers = ", ".join(f"{0.5 + i / 32:g}" for i in range(32))
    return graph(
        "agraph (float[N,8] x) => (float[N,4] y) { h = Gemm(x, w1, b1) "
        f"s = ai.onnx.ml.Scaler <offset = [{numbers}], scale = [{numbers}]> (h) y = Gemm(s, w2, b2) }}",
        {"w1": random(8, 32), "b1": random(32), "w2": random(32, 4), "b2": random(4)},
        domains=', "ai.onnx.ml" : 3',
    )


def test_an_operator_is_pruned_counted_and_trained(tmp_path: Path) -> None:
    model, out, data = tmp_path / "scaled.onnx", tmp_path / "out.onnx", tmp_path / "data.npz"
    model_io.save(scaled(), model)
    np.savez(data, x=random(64, 8), label=np.arange(64) % 4)
    alone = command("inspect", model, first=tmp_path)
    assert not any(group["units"] == 32 for group in alone["groups"])
    install(tmp_path, "operator")
    flags = ("--structure", "channels", "-s", 0.5, "--round-to", "none")
    told = command(model, "-o", out, *flags, "--retrain", "--data", data, "--steps", 4, first=tmp_path)
    assert told["removed_vs_masked"] < 1e-5
    (scaler,) = (node for node in ir.load(out).graph if node.op_type == "Scaler")
    assert 10 < len(scaler.attributes["scale"].as_floats()) < 20


def test_a_pass_prepares_the_model(tmp_path: Path) -> None:
    model, out = tmp_path / "dropout.onnx", tmp_path / "out.onnx"
    text = "agraph (float[N,8] x) => (float[N,4] y) { h = Gemm(x, w1) d = Dropout(h) y = Gemm(d, w2) }"
    model_io.save(graph(text, {"w1": random(8, 32), "w2": random(32, 4)}), model)
    install(tmp_path, "pass")
    command(model, "-o", out, "--structure", "channels", "-s", 0.5, first=tmp_path)
    assert [node.op_type for node in ir.load(out).graph] == ["Gemm", "Gemm"]


def test_a_flag_is_one_field(tmp_path: Path) -> None:
    package = tmp_path / "onnxprune"
    ignored = shutil.ignore_patterns("__pycache__", "passes")
    shutil.copytree(onnxprune.__path__[0], package, ignore=ignored)
    shutil.copytree(onnxprune.passes.__path__[0], package / "passes", ignore=shutil.ignore_patterns("__pycache__"))
    fields = package / "recipe" / "fields.py"
    text = fields.read_text()
    place = text.index("    retrain: Annotated[")
    fields.write_text(text[:place] + (HERE / "field.txt").read_text() + text[place:])
    record, recipe = tmp_path / "record.json", tmp_path / "r.toml"
    command(
        MLP,
        "-s",
        0.5,
        "--dry-run",
        "--note",
        "a first try",
        "--record",
        record,
        "--save-recipe",
        recipe,
        first=tmp_path,
    )
    assert json.loads(record.read_text())["recipe"]["note"] == "a first try"
    assert 'note = "a first try"' in recipe.read_text()
    told = command("run", recipe, "--dry-run", "--force", first=tmp_path)
    assert told["recipe"]["note"] == "a first try"
    shown = subprocess.run(
        [sys.executable, "-m", "onnxprune", "prune", "--help-all"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}, cwd=tmp_path, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "--note" in shown and "which the record keeps" in " ".join(shown.split())
