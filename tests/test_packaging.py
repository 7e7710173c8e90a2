"""The package lists its sub-packages by hand, since passes/ lies elsewhere than it is installed: is the list whole?"""

from __future__ import annotations

import re
import sys
from pathlib import Path

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
