"""The documentation is true: its commands run, its generated pages tell everything, its site builds."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import decoders
import onnx
import pytest
from generated import script

import onnxprune
from onnxprune import bridge
from onnxprune.cli.flags import SETTINGS
from onnxprune.engines import ENGINES
from onnxprune.pipeline.methods import catalogue
from onnxprune.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    "../README.md",
    "index.md",
    "methods.md",
    "tutorial.md",
    "howto/browser.md",
    "howto/retrain.md",
    "howto/sweep.md",
    "howto/edge.md",
    "howto/engines.md",
    "howto/server.md",
    "howto/no-data.md",
    "howto/no-labels.md",
    "howto/llm.md",
    "howto/pipelines.md",
]


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with models/ and small decoders in it, and an environment in which `onnxprune` is this one."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    decoders.write(tmp_path / "llama", layers=3)
    decoders.write(tmp_path / "moe", experts=6)
    for folder in ("narrow", "shallow", "fewer"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "onnxprune"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m onnxprune "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return tmp_path, {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", (DOCS / page).read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [line.removeprefix("pip install . && ") for line in lines]  # the package is here


@pytest.mark.zoo  # not for its models, for its time
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page: str, place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    found = commands(page)
    assert found and all(command.startswith("onnxprune ") for command in found)
    for command in found:
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("package", ["torch", "lightning", "transformers"])
def test_loops_of_ones_own_train_a_pruned_model(package: str, place: tuple[Path, dict[str, str]]) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'onnxprune[trainers]'")
    folder, environment = place
    prune, compare = commands("howto/own-loop.md")
    code = re.findall(r"```python\n(.*?)```", (DOCS / "howto" / "own-loop.md").read_text(), flags=re.S)
    (block,) = [block for block in code if _needs(block) == package]
    for command in (prune, [sys.executable, "-W", "ignore", "-c", block], compare):
        done = subprocess.run(
            command, shell=isinstance(command, str), cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert "accuracy" in done.stdout
    trained, pruned = (onnx.load(folder / f"{name}.onnx") for name in ("trained", "pruned"))
    assert [(t.name, list(t.dims)) for t in trained.graph.initializer] == [
        (t.name, list(t.dims)) for t in pruned.graph.initializer
    ]
    assert trained.SerializeToString() != pruned.SerializeToString()


def _needs(block: str) -> str:
    """The package whose loop a block of the page uses."""
    return next((name for name in ("lightning", "transformers") if name in block), "torch")


def test_promotion_puts_a_file_there_or_leaves_the_old_one(place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    live = folder / "live"
    live.mkdir()
    model, data = ROOT / "models" / "digits_mlp.onnx", ROOT / "models" / "digits_mlp.npz"
    (live / model.name).write_bytes(b"old")
    script = [str(DOCS / "examples" / "promote.sh"), str(model), str(data), str(live)]
    missed = subprocess.run(script, env={**environment, "MOST_SIZE": "0.1"}, capture_output=True, text=True)
    assert missed.returncode == 1 and "size" in missed.stderr
    assert [path.name for path in live.iterdir()] == [model.name] and (live / model.name).read_bytes() == b"old"
    done = subprocess.run(script, env={**environment, "MOST_DROP": "0.05"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in live.iterdir()} == {model.name, "digits_mlp.json"}
    assert (live / model.name).stat().st_size < 0.6 * model.stat().st_size


def test_reference_tells_every_flag_field_and_name() -> None:
    pages = script("reference_pages").pages()
    for flag in ("--sparsity", "--epochs", "--help-all", "--record", "--seed"):
        assert f"`{flag}" in pages["reference/cli.md"]
    assert all(f"`{name}`" in pages["reference/recipe.md"] for name in Recipe.model_fields)
    assert all(f"## onnxprune.{name}" in pages["reference/api.md"] for name in onnxprune.__all__)
    assert '"onnxprune-prune/1"' in pages["reference/schema.md"]
    assert all(f"### onnxprune.bridge.{name}\n" in pages["reference/bridge.md"] for name in bridge.__all__)


def test_extras_are_named_before_the_commands_that_need_them() -> None:
    training = [s.spelling for s in SETTINGS if s.section == "retrain" or s.parameter == "retrain"]
    torch = [f"--{e.setting}[ =]{e.name}" for e in catalogue() if e.needs and "PyTorch" in e.needs]
    needs = {
        "retrain": "|".join([*(f"{flag}(?![a-z-])" for flag in training), *torch, "--effort (medium|high)"]),
        "report": "--report|--plot",
        "sweep": "onnxprune sweep",
        "text": "--tokenizer",
    }
    late = []
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"```(?:console|shell)\n(.*?)```", text, flags=re.S):
            for extra, command in needs.items():
                if re.search(command, block[1]) and not re.search(rf"\[[a-z,]*\b{extra}\b", text[: block.end()]):
                    late.append(f"{page.relative_to(ROOT)}: {extra} is not named before: {block[1].strip()}")
    assert not late, "\n".join(late)


def test_the_example_of_the_bridge_runs(place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    prune = commands("howto/own-loop.md")[0]
    (code,) = re.findall(
        r"```python\n(import.*?)```", script("reference_pages").pages()["reference/bridge.md"], flags=re.S
    )
    for command in (prune, [sys.executable, "-W", "ignore", "-c", code]):
        done = subprocess.run(
            command, shell=isinstance(command, str), cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    trained, pruned = (onnx.load(folder / f"{name}.onnx") for name in ("trained", "pruned"))
    assert [tensor.name for tensor in trained.graph.initializer] == [tensor.name for tensor in pruned.graph.initializer]
    assert trained.SerializeToString() != pruned.SerializeToString()


def test_the_page_on_engines_holds_every_rule_with_its_source() -> None:
    text = (DOCS / "howto" / "engines.md").read_text()
    for engine in ENGINES.values():
        assert f"| `{engine.name}` | `--structure {engine.structure}" in text
        for rule in engine.rules:
            line = next(line for line in text.splitlines() if line.startswith(f"| {engine.called} | {rule.about} |"))
            assert rule.source.split()[0] in line


def test_figures_of_the_sparsity_page_are_those_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "sparsity_speed.json").read_text())["after / before"]
    text = (DOCS / "sparsity.md").read_text()
    for name, row in measured.items():
        cells = [f"{row[key]:.2f}" for key in ("latency", "file", "zipped", "packed")]
        assert f"| {name} | {' | '.join(cells)} |" in text


def test_the_page_shows_the_other_tools_as_measured() -> None:
    table = (ROOT / "benchmarks" / "results" / "tools.md").read_text().partition("\n\n")[2].strip()
    assert table in (DOCS / "measured.md").read_text()
    measured = json.loads((ROOT / "benchmarks" / "results" / "tools.json").read_text())
    names = re.findall(r"^\| (\w+) \|", table, flags=re.M)
    assert {*measured["models"], *measured["networks"]} == {*names} - {"model", "network"}
    row = {tool: f"{figures['accuracy']:.1f} %" for tool, figures in measured["networks"]["digits_resnet"].items()}
    readme, tools = (ROOT / "README.md").read_text(), ("onnxprune", "torch-pruning", "torch-kirigami")
    shown = " | ".join(row[tool] for tool in tools)
    assert f"| accuracy of the digits ResNet (99.4 %) with half of its weights | {shown} |" in readme
    files, networks = measured["models"], measured["networks"]
    ours, theirs = (cut_and_running(files, tool) for tool in ("onnxprune", "onnxsim"))
    assert f"| of {len(files)} exported files, cut and running | {ours} | | | {theirs} |" in readme
    shown = " | ".join(cut_and_running(networks, tool) for tool in (*tools, "onnxsim"))
    assert f"| of {len(networks)} networks of PyTorch, cut and running | {shown} |" in readme


def test_figures_of_the_readme_are_those_measured() -> None:
    results = ROOT / "benchmarks" / "results"
    channels, tiles, coupled = (
        json.loads((results / f"{name}.json").read_text()) for name in ("latency_channels", "tiles", "depgraph")
    )
    text = " ".join((ROOT / "README.md").read_text().split())
    resnet, mobilenet = (channels[f"{name}, round_to=auto"]["latency"] for name in ("resnet50", "mobilenet_v2"))
    assert f"ResNet-50 takes {resnet:.2f} of its time and MobileNetV2 {mobilenet:.2f} (" in text
    (bert,) = [case["latency"] for name, case in tiles["cases"].items() if re.search("BERT.*25%", name)]
    assert f"a network shaped like BERT-base takes {bert:.2f} (" in text
    theirs = sum(isinstance(row["measured_depgraph_percent"], float) for row in coupled.values())
    ours = (
        sum(row[exporter]["removed_percent"] > 0 for row in coupled.values() for exporter in ("legacy", "dynamo")) / 2
    )
    assert f"torchvision networks | {ours:g} of {len(coupled)} | {theirs} of {len(coupled)} |" in text


def cut_and_running(rows: dict[str, Any], tool: str) -> str:
    """Of how many models a tool cut something that runs; on how many it fails, or is not done in its time."""
    entries = [row[tool] for row in rows.values() if tool in row]
    cut = sum(entry["runs"] and entry["parameters"] < 0.99 for entry in entries)
    broken = sum(not entry["runs"] and not re.search("NothingToPrune|^gave up", entry["why"]) for entry in entries)
    late = sum(not entry["runs"] and entry["why"].startswith("gave up") for entry in entries)
    of = "" if len(entries) == len(rows) else f" of {len(entries)} measured"
    return f"{cut}{of}" + (f"; fails on {broken}" if broken else "") + (f"; over 300 CPU s on {late}" if late else "")


def test_figures_of_the_decoder_are_those_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "decoder.json").read_text())
    figures = {name: f"{row['perplexity']:.2f}" for name, row in measured.items()}
    text = (DOCS / "howto" / "llm.md").read_text()
    assert f"dense {figures['dense']}" in text
    for pattern, title in (("50 %", "50 % of the weights"), ("2:4", "2:4")):
        cells = [figures[f"{pattern}, {method}"] for method in ("magnitude", "Wanda", "SparseGPT", "ALPS")]
        assert f"| {title} | {' | '.join(cells)} |" in text
        assert [*map(float, cells)] == sorted(map(float, cells), reverse=True), "the order of the literature"
    for share in (20, 30):
        width, depth, both = (figures[f"{share}%, {way}"] for way in ("width", "depth", "both"))
        gone = f"{1 - measured[f'{share}%, depth']['left']:.0%}".replace("%", " %")
        assert f"| {share} % | {width} | {depth} ({gone}) | {both} |" in text


def test_figures_of_large_decoders_are_those_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "beyond_memory.json").read_text())
    text = (DOCS / "howto" / "llm.md").read_text()
    for name, row in measured.items():
        of, dtype, what = name.split(", ", 2)
        assert of == "2.7 GB in float32"
        line = next(line for line in text.splitlines() if line.startswith(("| 2.7 GB", "| 1.4 GB")) and dtype in line)
        assert f"{row['peak / file']:.2f} ({row['cpu_seconds / GB']:.0f} s)" in line, f"{dtype}, {what}"
        assert row["peak / file"] <= (0.6 if dtype == "float32" else 1.2)


def test_figures_of_the_detector_are_those_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "detection.json").read_text())
    text = (DOCS / "measured.md").read_text()
    assert f"The dense network has {measured['dense']:.1f}." in text
    for entry in measured["entries"]:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {entry['work']} | ")]
        assert f"{entry['map']:.1f}" in row


def test_figures_of_the_browser_are_those_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "browser.json").read_text())
    text = (DOCS / "howto" / "browser.md").read_text()
    for row in measured["models"].values():
        dense, pruned = row["dense"], row["pruned"]
        cells = [f"{dense[key]:,} to {pruned[key]:,}" for key in ("bytes", "gzip", "milliseconds")]
        ratio = f"{pruned['milliseconds'] / dense['milliseconds']:.2f}"
        assert f"| {' | '.join([*cells, ratio])} |" in text
    assert f"onnxruntime-web {measured['onnxruntime-web']}" in text


def test_every_command_of_the_guarantees_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text() + (ROOT / "SECURITY.md").read_text()
    commands = re.findall(r"`((?:python|pip-audit) [^`]+)`", text)
    assert len(commands) > 20
    named = [word for command in commands for word in command.split() if "/" in word or word.endswith(".txt")]
    assert [word for word in named if not (ROOT / word).exists()] == []
