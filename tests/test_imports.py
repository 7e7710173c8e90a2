"""What is imported before there is work to do: importing the package and reading its help must stay quick."""

import subprocess
import sys
from pathlib import Path

import pytest

import onnxprune

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "sympy", "torch", "onnxprune.scoring", "onnxprune.structure")
HELP = """
from onnxprune.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
"""
COMPLETION = (
    "import os; os.environ.update(_ONNXPRUNE_COMPLETE='complete_bash', COMP_WORDS='onnxprune --he', COMP_CWORD='1')"
)


def imported_by(code: str) -> list[str]:
    """The heavy modules that a fresh Python has imported after this code."""
    ask = f"{code}\nimport sys\nprint('imported', *[name for name in {HEAVY} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    return told.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "code",
    [
        "import onnxprune",
        "from onnxprune import Recipe; Recipe(sparsity=0.5)",
        "import onnxprune.model_io",
        HELP,
        HELP.replace('"--help"', '"prune", "--help-all"'),
        COMPLETION + HELP,
    ],
    ids=["package", "recipe", "files", "help", "help of prune", "completion"],
)
def test_nothing_heavy_is_imported_before_there_is_work(code):
    assert imported_by(code) == []


def test_public_names_arrive_when_they_are_asked_for():
    code = "import onnxprune; [getattr(onnxprune, name) for name in onnxprune.__all__]"
    assert set(imported_by(code)) >= {"numpy", "onnx_ir"}


def test_a_name_that_a_package_lacks_is_an_attribute_error():
    assert not hasattr(onnxprune, "no_such_name")
    assert set(onnxprune.__all__) <= set(dir(onnxprune))


def test_every_module_lies_in_a_room() -> None:
    package = Path(onnxprune.__file__).parent
    flat = {path.name for path in package.glob("*.py*")}
    assert flat == {"__init__.py", "__init__.pyi", "__main__.py", "errors.py", "plugins.py"}
