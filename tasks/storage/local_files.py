"""Files of this machine: written whole or not at all, and walked in one pass."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from tasks.storage.temporaries import TEMPORARY, is_left_over, temporary_name

Found: TypeAlias = tuple[str, int, float]  # path, size in bytes, time of the last change in POSIX seconds


def replace_file(target: Path, payload: bytes) -> None:
    """Put `payload` at `target`, whose folder is made where it is missing; readers find the old file or the new one."""
    # The temporary name is short and not derived from the target's, which may have all 255 bytes already.
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(temporary_name())
    try:
        temporary.write_bytes(payload)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_durably(temporary: Path, target: Path) -> None:
    """Rename a file of the same disk to `target`; after a power cut there is the old file or the new one, whole."""
    # Without it the rename may reach the disk before the bytes do, and leave an empty file under the final name.
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


def append_file(target: Path, payload: bytes) -> None:
    """Add `payload` to the end of a file, which is made with its folder where there is none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        file.write(payload)


def files_below(top: Path) -> list[Found]:
    """Every file below `top` by its path relative to it, which is "" where `top` is a file itself."""
    if top.is_file():
        return [_found("", top.stat())]
    found = []
    for name, entry in _walk(top):
        with suppress(OSError):  # deleted since it was listed, or a link that leads nowhere
            found.append(_found(name, entry.stat()))
    return found


def left_over_below(top: Path, *, recursive: bool = True) -> list[Found]:
    """The temporary files below `top`, or directly in it, that no living process writes and that we may see."""
    found = []
    for name, entry in _walk(top, recursive=recursive, but=(PermissionError,)):
        if entry.name.startswith(TEMPORARY):
            with suppress(OSError):
                file = _found(name, entry.stat(follow_symlinks=False))
                if is_left_over(entry.name, time.time() - file[2]):
                    found.append(file)
    return found


def delete_left_over(folder: Path) -> None:
    """Delete the temporary files directly in a folder that no living process writes and that may be deleted."""
    for name, _, _ in left_over_below(folder, recursive=False):
        with suppress(OSError):
            (folder / name).unlink()


def _found(name: str, status: os.stat_result) -> Found:
    return name, status.st_size, status.st_mtime


def delete_tree(top: Path) -> None:
    """Delete a file, or a folder and all that is in it, if there is one."""
    if top.is_dir() and not top.is_symlink():
        shutil.rmtree(top)
    else:
        top.unlink(missing_ok=True)


def _walk(
    top: Path, *, recursive: bool = True, but: tuple[type[OSError], ...] = ()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The files below a folder with their paths relative to it, but for folders whose listing raises `but`.

    Links to folders, which may lead in circles, are not followed. A folder that is not there holds no files.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        with suppress(FileNotFoundError, NotADirectoryError, *but), os.scandir(top / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders += [f"{name}/"] if recursive else []
                elif not _links_to_folder(entry):
                    yield name, entry


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_symlink() and entry.is_dir()
    return False
