"""The command line called as a function: its exit status, and refusals in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object, status: int = 2) -> str:
    """Run, expect one sentence on standard error, the exit status, and no new file."""
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert run(*arguments) == status
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("onnxprune: ") and err.count("\n") == 1
    return err
