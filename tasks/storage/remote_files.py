"""Files of fsspec's remote backends: written whole or not at all where the backend itself does not promise that."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tasks.storage.backends import S3_PART, protocols, puts_whole
from tasks.storage.retrying import is_missing
from tasks.storage.temporaries import is_left_over, temporary_name

T = TypeVar("T")
Found: TypeAlias = tuple[str, int, float]  # path, size in bytes, time of the last change in POSIX seconds, 0 if untold
Entry: TypeAlias = tuple[str, Mapping[str, Any]]  # path in the file system, what fsspec's `info` tells of it


def put_whole(filesystem: Any, target: str, put: Callable[[Any, str], object]) -> None:
    """Have `put` make the file `target`; readers find the old file or the new one.

    Object stores do that by themselves, and have no folders. Elsewhere the file is put beside the target and renamed.
    """
    if puts_whole(filesystem):
        put(filesystem, target)
        return
    folder = target.rpartition("/")[0]
    temporary = f"{folder}/{temporary_name()}"
    try:
        try:
            put(filesystem, temporary)
        except FileNotFoundError:
            filesystem.makedirs(folder, exist_ok=True)
            put(filesystem, temporary)
        _rename(filesystem, temporary, target)
    except BaseException:
        with suppress(Exception):  # what went wrong before is what is told
            filesystem.rm_file(temporary)
        raise


def _rename(filesystem: Any, source: str, target: str) -> None:
    # OpenSSH renames over what is there in one step. SMB and HDFS refuse to, FTP servers differ: what is there is
    # deleted first, so that a kill between the two leaves no file there, and never a half one.
    if "sftp" not in protocols(filesystem) and exists(filesystem, target):
        filesystem.rm_file(target)
    filesystem.mv(source, target)


def upload(file: Path, filesystem: Any, target: str) -> None:
    """Put a file of this machine at `target`."""
    parts = {"chunksize": S3_PART} if "s3" in protocols(filesystem) else {}
    filesystem.put_file(str(file), target, **parts)


def exists(filesystem: Any, target: str) -> bool:
    """Whether there is a file or a folder; an error of the backend, which fsspec's own takes for a no, is raised."""
    filesystem.invalidate_cache()
    return bool(_there(lambda: [filesystem.info(target)]))


def list_names(filesystem: Any, target: str) -> list[str]:
    """The names of what is directly in a folder; none where it does not exist."""
    filesystem.invalidate_cache()
    entries = _there(lambda: filesystem.ls(target, detail=False))
    return list({entry.rstrip("/").rpartition("/")[2] for entry in entries})


def find_files(filesystem: Any, target: str) -> list[Found]:
    """Every file below `target` by its path relative to it, which is "" where `target` is a file itself."""
    return [
        (path.removeprefix(target).lstrip("/"), int(info["size"] or 0), _modified(info))
        for path, info in _find(filesystem, target)
        if info["type"] != "directory"
    ]


def _find(filesystem: Any, target: str) -> Iterator[Entry]:
    """All that is below a folder, and what is told of it; the folder itself, too. A file is below itself."""
    filesystem.invalidate_cache()
    if filesystem.async_impl:  # one long list of the names that begin so
        yield from filesystem.find(target, withdirs=True, detail=True).items()
        return
    # Not filesystem.find, which takes a folder that cannot be listed, since the connection was lost, for an empty one.
    left = [(target, info) for info in _there(lambda: [filesystem.info(target)])]
    while left:
        path, info = left.pop()
        yield path, info
        if info["type"] == "directory":
            left += [(inner["name"], inner) for inner in _there(partial(filesystem.ls, path, detail=True))]


def _there(ask: Callable[[], list[T]]) -> list[T]:
    """What `ask` finds; nothing where it raises that there is nothing, rather than that it could not be asked."""
    try:
        return ask()
    except FileNotFoundError as error:
        if is_missing(error):
            return []
        raise


def find_left_over(filesystem: Any, target: str) -> list[Found]:
    """The temporary files below `target` that no living process writes."""
    if puts_whole(filesystem):  # nothing is written under a temporary name there, and a bucket is long
        return []
    now = time.time()
    return [
        (name, size, modified)
        for name, size, modified in find_files(filesystem, target)
        if is_left_over(name.rpartition("/")[2], now - modified if modified else None)
    ]


def _modified(info: Mapping[str, Any]) -> float:
    # The names that the time goes by: of gcsfs and SFTP; of s3fs; of adlfs; of memory.
    told = next((info[name] for name in ("mtime", "LastModified", "last_modified", "created") if info.get(name)), 0.0)
    if isinstance(told, datetime):
        return told.timestamp()
    return float(told) if isinstance(told, int | float) else 0.0


def delete_all(filesystem: Any, target: str) -> None:
    """Delete a file, or a folder and all that is in it."""
    found = dict(_find(filesystem, target))
    folders = {path for path, info in found.items() if info["type"] == "directory"}
    # Not filesystem.rm, which takes *, ? and [ in the target for a pattern and may delete what lies beside it.
    for file in sorted(found.keys() - folders):
        with suppress(FileNotFoundError):  # deleted by another process, or by a try whose answer was lost
            filesystem.rm_file(file)
    if "s3" not in protocols(filesystem):  # where a folder is what the names of files begin with
        for folder in sorted(folders, reverse=True):
            with suppress(FileNotFoundError):
                filesystem.rmdir(folder)
