"""A registry finds what is built in, what a package adds through an entry point, and the user's module:function."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import onnxprune
from onnxprune.errors import OnnxPruneError, RecipeError
from onnxprune.plugins import Plugins, Registry

Sound = Callable[[], str]
MODULE = """\
from registries import SOUNDS

@SOUNDS.register("moo")
def moo():
    return "moo"

def oink():
    return "oink"
"""


@pytest.fixture
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Sound]]:
    """A registry with one sound built in, in a module that other modules can import."""
    registry: Registry[Sound] = Registry(
        "sound", Plugins("test.sounds"), flag="--sound", of_function=lambda _, function: function
    )

    @registry.register("woof")
    def woof() -> str:
        return "woof"

    registries = ModuleType("registries")
    registries.SOUNDS = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "registries", registries)
    monkeypatch.syspath_prepend(tmp_path)
    yield registry
    sys.modules.pop("farm", None)


def add_package(folder: Path, module: str) -> None:
    """What pip leaves of a package with one module, `farm`, and an entry point."""
    (folder / "farm.py").write_text(module)
    info = folder / "farmyard-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: farmyard\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[test.sounds]\nfarm = farm\n")
    importlib.invalidate_caches()


def test_an_entry_point_adds_entries_behind_those_built_in(sounds: Registry[Sound], tmp_path: Path) -> None:
    add_package(tmp_path, MODULE)
    assert list(sounds) == ["woof", "moo"]
    assert sounds.find("moo")() == "moo" and "oink" not in sounds


def test_module_function_names_one_with_or_without_the_decorator(sounds: Registry[Sound], tmp_path: Path) -> None:
    (tmp_path / "farm.py").write_text(MODULE)
    assert sounds.find("farm:moo") is sounds.find("moo")
    assert sounds.find("farm:oink")() == "oink"


def test_where_only_decorated_functions_will_do_others_are_refused(sounds: Registry[Sound], tmp_path: Path) -> None:
    (tmp_path / "farm.py").write_text(MODULE)
    sounds._of_function = None
    assert sounds.find("farm:moo")() == "moo"
    with pytest.raises(RecipeError, match="--sound: the function 'farm:oink' is no sound: it lacks the decorator"):
        sounds.find("farm:oink")


def test_an_unknown_name_lists_the_names(sounds: Registry[Sound]) -> None:
    with pytest.raises(RecipeError, match="--sound: there is no sound 'meow': choose one of woof, or module:function"):
        sounds.find("meow")
    with pytest.raises(RecipeError, match="'nowhere:meow' cannot be imported"):
        sounds.find("nowhere:meow")


@pytest.mark.parametrize("broken", ["import nothing_of_this_name", "1 / 0", "def ("])
def test_a_broken_plugin_names_its_package(sounds: Registry[Sound], tmp_path: Path, broken: str) -> None:
    add_package(tmp_path, broken)
    for _ in range(2):  # the second look does not find half of it
        with pytest.raises(OnnxPruneError, match="the package 'farmyard' adds 'farm' to test.sounds"):
            list(sounds)


def test_two_functions_cannot_have_one_name(sounds: Registry[Sound], tmp_path: Path) -> None:
    add_package(tmp_path, MODULE.replace('"moo")', '"woof")'))
    with pytest.raises(OnnxPruneError, match="farm.moo is to be the sound 'woof', which is .*woof: choose another"):
        list(sounds)


def modules() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(onnxprune.__path__, "onnxprune.")]


def test_no_module_is_hidden_by_a_function_of_its_name() -> None:
    for name in modules():
        if name.endswith("__main__") or name == "onnxprune.integrations.olive":  # needs olive
            continue
        module = importlib.import_module(name)
        package, _, short = name.rpartition(".")
        assert getattr(sys.modules[package], short) is module, f"{name} is hidden by what its package imports"


def test_a_pass_that_changes_the_function_cannot_prepare_models() -> None:
    from onnxprune.passes.preparing import preparing
    from onnxprune.passes.remove_dead import RemoveDeadUnits

    class Lossy(RemoveDeadUnits):
        preserves = "up to recovery"  # type: ignore[assignment]

    with pytest.raises(OnnxPruneError, match="'lossy' cannot prepare models: its `preserves` is not 'exactly'"):
        preparing("lossy")(Lossy)
