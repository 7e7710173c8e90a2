"""Files that belong together get their names together, also where the process dies in between; leftovers go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.errors import ModelError
from onnxprune.model_io import file_set
from onnxprune.model_io.atomic import publish, sync, temporary_beside, together

if not hasattr(os, "fork"):
    pytest.skip("leftovers are told by locks of POSIX", allow_module_level=True)

NAMES = ("model.onnx", "record.json", "report.html")


def write(folder: Path, content: str, *, replace: bool = True) -> None:
    with together():
        for name in NAMES:
            with temporary_beside(folder / name) as (temporary, file):
                file.write(f"{content} {name}".encode())
                sync(file)
                publish(temporary, folder / name, replace=replace)


def contents(folder: Path) -> set[str]:
    return {(folder / name).read_text().split()[0] for name in NAMES if (folder / name).exists()}


def killed_at(folder: Path, step: int) -> bool:
    """Write "new" in a process that kills itself before the file operation of this number; whether it came to that."""
    pid = os.fork()
    if pid == 0:
        left = step

        def hook(event: str, about: tuple[object, ...]) -> None:
            nonlocal left
            if event in ("os.rename", "os.link", "os.remove") or (event == "open" and "x" in str(about[1])):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write(folder, "new")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_set_is_old_or_new_whenever_the_process_dies(tmp_path: Path) -> None:
    step, seen = 0, []
    died = True
    while died:
        step += 1
        write(tmp_path, "old")
        died = killed_at(tmp_path, step)
        mixed = len(contents(tmp_path)) > 1
        assert not mixed or any(name.name.endswith("onnxprune-set") for name in tmp_path.iterdir())
        file_set.tidy(tmp_path)
        assert len(contents(tmp_path)) == 1, step
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
        seen += [*contents(tmp_path)]
    assert seen[0] == "old" and seen[-2:] == ["new", "new"] and seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("broken", NAMES)
def test_an_error_takes_the_names_back(tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "old")
    rename = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name == broken and "onnxprune" in Path(source).name and Path(source).stat().st_nlink == 1:
            raise PermissionError(1, "Operation not permitted", str(source), None, str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ModelError, match=f"{broken}.*not permitted"):
        write(tmp_path, "new")
    assert contents(tmp_path) == {"old"} and sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_a_name_that_is_taken_takes_the_others_back(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ModelError, match=r"report\.html' exists already"):
        write(tmp_path, "new", replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    write(tmp_path, "old")
    for name in NAMES:
        (tmp_path / name).chmod(mode)
    write(tmp_path, "new")
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in NAMES} == {mode} and contents(tmp_path) == {"new"}


def test_leftovers_of_a_process_that_lives_stay(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom onnxprune.model_io.atomic import temporary_beside\n"
        "with temporary_beside(pathlib.Path(sys.argv[1])):\n    print('open', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        file_set.tidy(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        process.kill()
        process.wait()
    file_set.tidy(tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_our_own_files_are_leftovers(tmp_path: Path) -> None:
    names = [".a.tmp", ".model.onnx.0123456789abcdef.tmp", "a.0123456789abcdef.onnxprune-tmp", ".a.0123.onnxprune-tmp"]
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".dir.0123456789abcdef.onnxprune-tmp").mkdir()
    (tmp_path / ".link.0123456789abcdef.onnxprune-tmp").symlink_to(names[0])
    os.mkfifo(tmp_path / ".pipe.0123456789abcdef.onnxprune-tmp")
    before = sorted(path.name for path in tmp_path.iterdir())
    write(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, *NAMES])


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/b"])
def test_a_manifest_never_reaches_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    temporary = folder / ".m.0123456789abcdef.onnxprune-tmp"
    temporary.write_text("evil")
    entry = {"temporary": temporary.name, "name": name, "replace": True, "inode": temporary.stat().st_ino}
    (folder / ".m.0123456789abcdef.onnxprune-set").write_text(json.dumps({"files": [entry]}))
    file_set.tidy(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]
