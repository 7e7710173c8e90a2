"""Several files that get their names together: all of them or none, also where the process is killed in between.

Before the first rename a manifest is written beside the files, `.<file>.<16 digits>.onnxprune-set`. From then on the
set is valid. Renames follow at once, then the manifest goes. Where a manifest is left by a process that was killed,
the next run in the folder finishes its renames. An error takes the renames back instead.

Files of a set in several folders have a manifest in each. A manifest names files of its own folder only, so that one
from elsewhere can never reach out of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.model_io import temporary as temporaries
from onnxprune.model_io.paths import is_no_file


@dataclass(frozen=True)
class Finished:
    """A complete file that waits for its name.

    Attributes:
        temporary: The file as it is called now.
        path: The name that it gets.
        replace: Whether it may take the place of another file.
        durable: Whether a power cut must not take it.
        mode_of: The file whose permissions it gets, where that exists: the one that it replaces.
        named_by_content: Whether a file of that name holds the same bytes, so that none has to come back.
    """

    temporary: Path
    path: Path
    replace: bool
    durable: bool = True
    mode_of: Path | None = None
    named_by_content: bool = False


def name_all(files: Sequence[Finished]) -> None:
    """Give every file its name; where that fails for one, none has it afterwards.

    Raises:
        FileExistsError: A name is taken, and its file may not be replaced. `filename` is the name.
        OSError: The file system refused.
    """
    folders = {file.path.parent: [f for f in files if f.path.parent == file.path.parent] for file in files}
    durable = any(file.durable for file in files)
    with ExitStack() as stack:
        for folder, inside in folders.items():
            if durable and len(files) > 1:
                stack.enter_context(_manifest(folder, inside))
        undo: list[Callable[[bool], None]] = []
        try:
            for file in files:
                undo.append(_name(file))
        except BaseException:
            for step in reversed(undo):
                step(False)
            raise
        for step in undo:
            step(True)
        if durable:
            for folder in folders:
                sync_folder(folder)
    for file in files:
        temporaries.release(file.temporary)


def tidy(folder: Path) -> None:
    """Finish the sets that killed processes left in a folder, then remove their other temporary files."""
    for manifest, descriptor in temporaries.leftovers(folder, temporaries.SET):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if os.fstat(descriptor).st_uid == _user(descriptor):
                _finish(folder, json.loads(manifest.read_bytes()))
        with contextlib.suppress(OSError):
            manifest.unlink()
        os.close(descriptor)
    temporaries.remove_leftovers(folder)


def sync_folder(folder: Path) -> None:
    """Make renames durable; systems that cannot open folders do that by themselves."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _manifest(folder: Path, files: Sequence[Finished]) -> Iterator[None]:
    """While inside, the set is written down in the folder."""
    entries = [
        {
            "temporary": file.temporary.name,
            "name": file.path.name,
            "replace": file.replace,
            "inode": file.temporary.stat().st_ino,
        }
        for file in files
    ]
    path, file = temporaries.create(files[0].path, temporaries.SET)
    try:
        with file:
            file.write(json.dumps({"files": entries}).encode())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
        yield
    finally:
        temporaries.remove(path)


def _finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Do the renames that are left, where every file of the set is there under one of its names."""
    left = []
    for entry in manifest["files"]:
        temporary, name, inode = str(entry["temporary"]), str(entry["name"]), int(entry["inode"])
        if not temporaries.is_ours(temporary) or Path(name).name != name or Path(temporary).name != temporary:
            return
        waiting = _inode(folder / temporary) == inode
        if not waiting and _inode(folder / name) != inode:
            return
        if waiting:
            left.append(Finished(folder / temporary, folder / name, bool(entry["replace"])))
    for file in left:
        with contextlib.suppress(FileExistsError):  # taken by another run since then
            if _inode(file.path) != _inode(file.temporary):
                _name(file)(True)
    sync_folder(folder)


def _name(file: Finished) -> Callable[[bool], None]:
    """Rename one file; returns what keeps (True) or takes back (False) the rename."""
    if not file.replace:
        inode = _inode(file.temporary)
        _rename_new(file.temporary, file.path)

        def settle_new(keep: bool) -> None:
            if not keep and _inode(file.path) == inode:
                file.path.unlink(missing_ok=True)

        return settle_new
    if is_no_file(file.path):
        raise OSError(errno.EINVAL, "it is a device, pipe or socket, which is never replaced", str(file.path))
    _take_mode(file)
    # Readers refuse external data while they have a second name.
    backup = None if file.named_by_content else _second_name(file.path)
    existed = os.path.lexists(file.path)
    try:
        os.replace(file.temporary, file.path)
    except BaseException:
        if backup is not None:
            backup.unlink(missing_ok=True)
        raise

    def settle(keep: bool) -> None:
        with contextlib.suppress(OSError):
            if keep and backup is not None:
                backup.unlink(missing_ok=True)
            elif backup is not None:
                os.replace(backup, file.path)
            elif not keep and not existed:
                file.path.unlink(missing_ok=True)

    return settle


def _second_name(path: Path) -> Path | None:
    """Another name of a file that is about to be replaced; None where it is not there, or the system has no links."""
    backup = path.with_name(temporaries.new_name(path))
    try:
        os.link(path, backup, follow_symlinks=False)
    except (OSError, NotImplementedError):
        return None
    return backup


def _take_mode(file: Finished) -> None:
    """Give the new file the permissions of the one that it replaces, and its owner where that is allowed."""
    with contextlib.suppress(OSError):
        old, new = (file.mode_of or file.path).stat(), file.temporary.stat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid) and hasattr(os, "chown"):
            with contextlib.suppress(OSError):
                os.chown(file.temporary, old.st_uid, old.st_gid)
        os.chmod(file.temporary, stat.S_IMODE(old.st_mode))


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename without replacing: a hard link fails if the name is taken, where a rename would overwrite."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(17, "it exists already", str(path)) from None
    except OSError:  # file systems without hard links
        if os.path.lexists(path):
            raise FileExistsError(17, "it exists already", str(path)) from None
        os.rename(temporary, path)
    else:
        temporary.unlink()


def _inode(path: Path) -> int | None:
    """The inode of a regular file; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino if stat.S_ISREG(status.st_mode) else None


def _user(descriptor: int) -> int:
    """The user of this process, on systems that have users."""
    return os.geteuid() if hasattr(os, "geteuid") else os.fstat(descriptor).st_uid
