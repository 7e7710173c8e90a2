"""The package lists its sub-packages by hand, since passes/ lies elsewhere than it is installed: is the list whole?"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from command_line import run

import onnxprune

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def test_every_folder_with_code_is_packaged() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for top, name in (("onnxprune", "onnxprune"), ("passes", "onnxprune.passes")):
        for file in (ROOT / top).rglob("*.py"):
            found.add(".".join([name, *file.parent.relative_to(ROOT / top).parts]))
    assert found == listed


def test_one_version_is_told_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[0]
    cited = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    hooked = re.findall(r"rev: v(\S+)", (ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {newest, *cited, *hooked, onnxprune.__version__} == {version}


def test_direct_dependencies_are_pinned_for_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {entry.split(">")[0].strip().lower() for entry in wanted if not entry.startswith("onnxprune")}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert names - {"tomli"} == pinned


def test_the_badges_say_what_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    shown = re.findall(r"!\[(.*?)\]\(https://img.shields.io/badge/(\w+)-(.*?)-\w+\)", (ROOT / "README.md").read_text())
    texts = {name: unquote(text.replace("--", "-")) for _, name, text in shown}
    versions = [entry.split(" :: ")[-1] for entry in project["classifiers"] if re.search(r":: 3\.\d+$", entry)]
    assert texts == {"python": f"{versions[0]} to {versions[-1]}", "license": project["license"]}
    assert project["requires-python"] == f">={versions[0]}"
    assert [alternative.lower() for alternative, *_ in shown] == [f"{n} {text}".lower() for n, text in texts.items()]


def hook(name: str, files: list[Path], monkeypatch: pytest.MonkeyPatch, args: list[str] | None = None) -> int:
    """Run a hook as pre-commit does: its entry, its arguments or the user's, then the names of the changed files."""
    (found,) = (hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text()) if hook["id"] == name)
    command, *words = found["entry"].split()
    assert command == "onnxprune" and found["language"] == "python"
    changed = [str(path) for path in files if re.search(found["files"], path.name)]
    assert changed, "pre-commit would skip it"
    monkeypatch.chdir(files[0].parent)
    return run(*words, *(args or found.get("args", [])), *(changed if found.get("pass_filenames", True) else []))


def test_the_hook_reads_each_changed_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [Path(shutil.copy(ROOT / "models" / "digits_mlp.onnx", tmp_path / name)) for name in ("a.onnx", "b.onnx")]
    assert hook("onnxprune-inspect", good, monkeypatch) == 0
    (tmp_path / "c.onnx").write_bytes(b"no model")
    assert hook("onnxprune-inspect", [*good, tmp_path / "c.onnx"], monkeypatch) == 2
    assert "c.onnx" in capsys.readouterr().err


def test_the_hook_of_a_recipe_fails_where_a_limit_is_missed_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "models" / "digits_mlp.onnx", tmp_path / "net.onnx")
    lines = "model = 'net.onnx'\nsparsity = 0.5\nstructure = 'channels'\nrequire = ['size<=%s%%']\n"
    recipe, strict = tmp_path / "recipe.toml", tmp_path / "strict.toml"
    recipe.write_text(lines % 60)
    strict.write_text(lines % 10)
    before = set(tmp_path.iterdir())
    assert hook("onnxprune-recipe", [recipe], monkeypatch) == 0
    assert hook("onnxprune-recipe", [strict], monkeypatch, ["strict.toml"]) != 0
    assert "size" in capsys.readouterr().err and set(tmp_path.iterdir()) == before
