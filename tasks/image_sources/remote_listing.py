"""What images there are behind a URL.

Two kinds of backends: stores of objects (S3, GCS, Azure) list everything below a prefix in few requests, and have no
folders but names that begin alike. The others (SFTP, HTTP, SMB) are searched folder by folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem

from tasks.domain.errors import SpecError
from tasks.domain.images import is_inner_path, is_left_out
from tasks.image_sources.image_roots import (
    IS_FOLDER,
    NO_KEY,
    NO_UTF8,
    NOT_INSIDE,
    NOT_THERE,
    ImageRoot,
    ListedFile,
    Survey,
    has_suffix,
    readable,
    walk,
)
from tasks.in_order import in_order
from tasks.storage.backends import protocols
from tasks.storage.retrying import is_transient, retrying

# What backends call the fields of `info` that change with the content of a file: s3fs, gcsfs, adlfs, HTTP, SFTP, FTP,
# WebDAV, memory. The time of creation counts where a file that is written anew is a new one.
VERSION_FIELDS = (
    *("ETag", "etag", "md5Hash", "LastModified", "updated", "last_modified", "Last-Modified", "mtime"),
    *("modify", "modified", "created"),
)
ASKERS = 16  # threads that ask about one file each; a web server answers after some 30 ms


def list_remote(root: ImageRoot, survey: Survey) -> Iterator[ListedFile]:
    """All files with the suffix of an image, sorted by key, without the prefix; SpecError where that cannot be told."""
    root.filesystem.invalidate_cache()
    return _list_objects(root, survey) if _lists_at_once(root.filesystem) else walk(partial(_scan, root, survey))


def named_remotely(root: ImageRoot, keys: Sequence[str]) -> list[ListedFile]:
    """The files of these keys, with the prefix, in their order.

    Raises SpecError where the backend cannot be asked. A root that is not there cannot be told from an empty one.
    """
    paths = {key.removeprefix(root.prefix) for key in keys}
    inner = sorted(path for path in paths if is_inner_path(path))
    found = _asked_by_name(root, inner) if _has_pages(root) else _found_in_folders(root, inner)
    listed = []
    for key in keys:
        path = key.removeprefix(root.prefix)
        lost = NOT_THERE if is_inner_path(path) else NOT_INSIDE
        listed.append(ListedFile(key, found[path]) if path in found else ListedFile(key, "", lost))
    return listed


def _lists_at_once(filesystem: Any) -> bool:
    """Whether a backend has a listing of its own; that of fsspec passes over folders that it cannot list."""
    own = type(filesystem)
    if isinstance(filesystem, AsyncFileSystem):
        return own._find is not AsyncFileSystem._find  # noqa: SLF001 - what backends replace
    return own.find is not AbstractFileSystem.find


def _has_pages(root: ImageRoot) -> bool:
    # A web server need not show its folders, and tells nothing about the files in them.
    return "http" in protocols(root.filesystem)


def _list_objects(root: ImageRoot, survey: Survey) -> Iterator[ListedFile]:
    try:
        found = retrying(lambda: root.filesystem.find(root.path, detail=True))
    except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
        raise _cannot_be_listed(root, error) from error
    root.filesystem.invalidate_cache()  # it holds the same dicts
    if root.path in found:
        raise SpecError(f"{root.name} is a file; image_dir takes folders")
    files: list[ListedFile] = []
    left_out: set[str] = set()
    while found:
        path, info = found.popitem()
        relative = _relative(root, path)
        if (folder := _folder_left_out(relative, root.excluded)) is not None:
            left_out.add(folder)
        elif has_suffix(path) and info["type"] == "file":
            reason = _why_no_key(relative)
            files.append(ListedFile(readable(relative), "" if reason else _version(info), reason))
    for folder in left_out:
        survey.left_out.add(folder)
    files.sort(key=lambda file: file.key, reverse=True)
    while files:
        yield files.pop()


def _scan(root: ImageRoot, survey: Survey, folder: str) -> Iterator[ListedFile | str]:
    try:
        infos = retrying(lambda: root.filesystem.ls(_path(root, folder), detail=True))
    except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
        # What a server that is away for a while holds is not to vanish from the results as if it had been deleted.
        if not folder or is_transient(error):
            raise _cannot_be_listed(root, error, folder) from error
        yield ListedFile(readable(folder), "", f"is a folder that cannot be searched: {root.told(error)}")
        return
    entries = [entry for info in infos for entry in _entries(root, survey, info)]
    del infos
    entries.sort(key=lambda entry: readable(entry) if isinstance(entry, str) else entry.key)
    yield from _looked_up(root, survey, entries)


def _entries(root: ImageRoot, survey: Survey, info: Mapping[str, Any]) -> Iterator[ListedFile | str]:
    """What is to be done about one thing in a folder: a file, a folder to search (a path with a slash), both, or none.

    A link is a file without a version: only the server knows what it leads to.
    """
    relative = _relative(root, info["name"]).rstrip("/")  # HTTP's folders end with a slash
    if not relative:
        raise SpecError(f"{root.name} is a file; image_dir takes folders")
    if info["type"] == "link":
        yield ListedFile(relative, None)
    elif info["type"] != "directory":
        if has_suffix(relative):
            reason = _why_no_key(relative)
            yield ListedFile(readable(relative), "" if reason else _version(info), reason)
    elif is_left_out(relative, root.excluded):
        survey.left_out.add(relative)
    else:
        yield f"{relative}/"
        if has_suffix(relative):
            yield ListedFile(readable(relative), "", IS_FOLDER)


def _looked_up(root: ImageRoot, survey: Survey, entries: Sequence[ListedFile | str]) -> Iterator[ListedFile | str]:
    """The entries of a folder, with what the server tells of each file when it is asked; links to folders are counted.

    Several are asked for at a time, and none where the folder has told everything.
    """
    if all(isinstance(entry, str) or entry.version is not None for entry in entries):
        yield from entries
        return
    for entry, answer in in_order(partial(_look, root), entries, ASKERS):
        if isinstance(answer, str):
            yield answer
            continue
        if isinstance(entry, ListedFile) and entry.version is None and answer.reason == IS_FOLDER:
            survey.links.add(answer.key)
        if has_suffix(answer.key):
            yield answer


def _look(root: ImageRoot, entry: ListedFile | str) -> ListedFile | str:
    if isinstance(entry, str) or entry.version is not None:
        return entry
    try:
        info = root.filesystem.info(_path(root, entry.key))
    except Exception:  # noqa: BLE001 - whatever it is, who reads the file is told
        return entry
    is_folder = info["type"] == "directory"
    return ListedFile(entry.key, "", IS_FOLDER) if is_folder else ListedFile(entry.key, _version(info))


def _asked_by_name(root: ImageRoot, paths: Sequence[str]) -> dict[str, str | None]:
    """The versions of those of `paths` that are there; None where the server does not tell."""

    def ask(path: str) -> list[str | None]:
        try:
            return [_version(root.filesystem.info(_path(root, path)))]
        except FileNotFoundError:
            return []
        except Exception:  # noqa: BLE001 - whatever it is, who reads the file is told
            return [None]

    return {path: version for path, versions in in_order(ask, paths, ASKERS) for version in versions}


def _found_in_folders(root: ImageRoot, paths: Sequence[str]) -> dict[str, str | None]:
    """The versions of those of `paths` that their folders hold."""
    root.filesystem.invalidate_cache()
    wanted = set(paths)
    found: dict[str, str | None] = {}
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        for info in _in_folder(root, folder):
            path = _relative(root, info["name"])
            if path not in wanted or info["type"] == "directory":
                continue
            file = _look(root, ListedFile(path, None if info["type"] == "link" else _version(info)))
            found |= {} if isinstance(file, str) or file.reason else {path: file.version}
    return found


def _in_folder(root: ImageRoot, folder: str) -> Sequence[Mapping[str, Any]]:
    try:
        infos: Sequence[Mapping[str, Any]] = retrying(lambda: root.filesystem.ls(_path(root, folder), detail=True))
        return infos
    except FileNotFoundError:
        return ()
    except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
        raise _cannot_be_listed(root, error, folder) from error


def _cannot_be_listed(root: ImageRoot, error: Exception, folder: str = "") -> SpecError:
    what = f"{readable(folder)!r} in {root.name}" if folder else root.name
    return SpecError(f"{what} cannot be listed: {root.told(error)}; check image_dir and storage_options")


def _path(root: ImageRoot, relative: str) -> str:
    return "/".join(filter(None, (root.path.rstrip("/"), relative.rstrip("/")))) or "/"


def _relative(root: ImageRoot, path: str) -> str:
    return path.removeprefix(root.path.rstrip("/")).removeprefix("/")


def _folder_left_out(relative: str, excluded: frozenset[str]) -> str | None:
    """The outermost folder on the way to a file that is not to be searched, None where there is none."""
    folders = accumulate(relative.split("/")[:-1], lambda outer, name: f"{outer}/{name}")
    return next((folder for folder in folders if is_left_out(folder, excluded)), None)


def _why_no_key(relative: str) -> str | None:
    if readable(relative) != relative:
        return NO_UTF8
    return None if is_inner_path(relative) else NO_KEY


def _version(info: Mapping[str, Any]) -> str | None:
    """Size and times, ETag or digest of a file; None where the backend tells its size alone, or nothing."""
    told_of = [str(info[name]) for name in VERSION_FIELDS if info.get(name) is not None]
    return " ".join([str(info.get("size")), *told_of]) if told_of else None
