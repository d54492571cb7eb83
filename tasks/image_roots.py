"""Image roots: the folders, local or behind a URL, in which images are searched, and what is listed there.

What counts as an image file:

* A file is listed by its suffix (SUFFIXES, in any case), wherever it lies below its root.
* Links to files are followed, those that leave the folder too: data sets are often folders of links into a common
  store (DVC, git-annex), and whoever made the folder made the link. Links to folders are not followed, since they may
  lead in circles; how many there are is logged. A folder named like an image is reported, and searched.
* Hidden folders (.git, .cache, .Trash) are not searched: what programs keep there is not the data set. A hidden file
  is a file like any other. So are the `._photo.jpg` that macOS leaves beside `photo.jpg` on foreign disks
  (AppleDouble): they hold no picture, and are reported as images that cannot be read.
* What earlier runs left, the pictures with the labels drawn into them, is not searched either, although it may lie
  below an image root.
"""

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tasks.domain.addresses import without_password
from tasks.domain.errors import ImageError, SpecError
from tasks.domain.images import folders_at_or_below, is_inner_path, is_left_out, key_prefixes, refuse_nested_roots

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
# What backends call the fields of `info` that change with a file's content (s3fs, gcsfs, adlfs, sftp, memory).
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
NOT_THERE = "is not there"
NOT_INSIDE = (
    "has a file_name that leaves the image folder, or cannot be told from a path; expected one relative to it, without "
    "'.' or '..'"
)
NO_KEY = "has a name with empty parts, '..' or a drive in it, which cannot be told from a path; rename it"


@dataclass(frozen=True)
class ListedFile:
    """A file that should be an image, by its name.

    `version` is made of what the backend tells about the content without reading it (size and times, ETag).
    `reason` says in words why the file is not to be opened, None for the many that are.
    """

    key: str
    version: str
    reason: str | None = None


@dataclass(frozen=True)
class ImageRoot:
    """An opened image root.

    `name` is its address as it may be shown, `path` what `filesystem` calls it, `prefix` what its keys begin with (""
    or "name/"). `excluded` are folders that are not searched, relative to the root ("" is the root itself).
    """

    name: str
    filesystem: Any
    path: str
    prefix: str = ""
    excluded: frozenset[str] = frozenset()

    @property
    def is_local(self) -> bool:
        """Whether the images are files of this machine, as paths or behind file://."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders that lead to the root; that of a URL begin with the protocol."""
        folders = _parts(without_password(self.path))
        return folders if self.is_local else (self._protocol, *folders)

    @property
    def place(self) -> tuple[str, ...]:
        """Where the root really is, whichever links lead there; two addresses of one folder have the same place."""
        if self.is_local:
            return _parts(os.path.realpath(self.path))
        return (f"{self._protocol}://{getattr(self.filesystem, 'host', '')}", *_parts(self.path))

    @property
    def _protocol(self) -> str:
        return str(self.filesystem.unstrip_protocol("").partition(":")[0])

    def list_images(self) -> list[ListedFile]:
        """All files with the suffix of an image, in no order; raises SpecError when there are none."""
        files, left_out = _list_local(self) if self.is_local else _list_remote(self)
        if left_out:
            what = f"hidden folders and results of earlier runs: {len(left_out)}, such as {_readable(min(left_out))!r}"
            logger.info("not searched in %s were %s", self.name, what)
        if not files:
            beside = " outside hidden folders and the results of earlier runs" if left_out else ""
            raise SpecError(f"{self.name} holds no images ({' '.join(SUFFIXES)}){beside}; check image_dir")
        return [replace(file, key=self.prefix + file.key) for file in files]

    def list_named(self, keys: Sequence[str]) -> list[ListedFile]:
        """The files of these keys, which begin with the prefix, in their order; what is not there is listed as such.

        Raises SpecError where the root cannot be listed, or is a local folder that is not there. A remote one that is
        not there cannot be told from an empty one: object stores have no folders, only names that begin alike.
        """
        if not self.is_local:
            return _named_remotely(self, keys)
        if not Path(self.path).is_dir():
            raise SpecError(f"{self.name} is not a folder; check img_dir")
        return [_named_locally(self, key) for key in keys]

    def path_of(self, key: str) -> str:
        """The path of the image `key` in `filesystem`; raises ImageError where a link leads out of the root."""
        path = f"{self.path.rstrip('/')}/{key.removeprefix(self.prefix)}"
        if self.is_local and not _is_under(Path(path).parent, self.path):
            raise ImageError(
                f"{key!r} leaves {self.name} through a link to a folder; put the images into {self.name} itself, or "
                "name the folder that the link leads to, with every file_name relative to it"
            )
        return path


def open_roots(
    uris: Sequence[str], storage_options: Mapping[str, object], excluded: Sequence[str]
) -> tuple[ImageRoot, ...]:
    """The roots with their prefixes, and with those of the folders `excluded` that lie in them.

    Raises SpecError for a root that no backend can open and for roots that hold the same images.
    """
    roots = [_open_root(uri, storage_options) for uri in uris]
    refuse_nested_roots([root.name for root in roots], [root.place for root in roots])
    places = _places(excluded, storage_options)
    return tuple(
        replace(root, prefix=prefix, excluded=folders_at_or_below(root.place, places))
        for root, prefix in zip(roots, key_prefixes([root.parts for root in roots]), strict=True)
    )


def _places(uris: Sequence[str], storage_options: Mapping[str, object]) -> list[tuple[str, ...]]:
    places = []
    for uri in filter(None, uris):  # an empty one would be the working directory
        with suppress(SpecError):  # what cannot be opened holds no image of a root that can
            places.append(_open_root(uri, storage_options).place)
    return places


def _open_root(uri: str, storage_options: Mapping[str, object]) -> ImageRoot:
    name = without_password(uri)
    if "\0" in uri:
        raise SpecError(f"{name!r} cannot be opened: it holds a NUL character, which no path has; check image_dir")
    if "://" not in uri:
        # Path.expanduser raises where no such user is known; the ~ belongs to a name then, as in a shell.
        path = Path(os.path.expanduser(uri)).absolute()  # noqa: PTH111
        return ImageRoot(name, LocalFileSystem(), os.path.normpath(path))
    try:
        filesystem, path = url_to_fs(uri, **storage_options)
    except Exception as error:  # an unknown protocol, a package that is not installed, a wrong option
        raise SpecError(
            f"{name} cannot be opened: {told(error)}; check the image folder and storage_options"
        ) from error
    return ImageRoot(name, filesystem, path)


def _list_local(root: ImageRoot) -> tuple[list[ListedFile], list[str]]:
    files: list[ListedFile] = []
    left_out: list[str] = []
    links: list[str] = []
    folders = [root.path]
    while folders:
        folder = folders.pop()
        try:
            entries, not_searched = _scan(folder, root)
        except OSError as error:
            if folder == root.path:
                raise SpecError(f"{root.name} cannot be searched: {told(error)}; check image_dir") from error
            key = _readable(_relative(folder, root.path))
            files.append(ListedFile(key, "", f"is a folder that cannot be searched: {told(error)}"))
            continue
        left_out += not_searched
        folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        links += [entry.path for entry in entries if _links_to_folder(entry)]
        files += [_listed_locally(entry, root.path) for entry in entries if _has_suffix(entry.name)]
    if links:
        example = _readable(_relative(min(links), root.path))
        logger.warning("linked folders in %s were not searched: %d, such as %r", root.name, len(links), example)
    return files, left_out


def _scan(folder: str, root: ImageRoot) -> tuple[list[os.DirEntry[str]], list[str]]:
    """What is directly in a folder, and the folders there that are not to be searched, relative to the root."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    inner = {entry.name: _relative(entry.path, root.path) for entry in entries if entry.is_dir(follow_symlinks=False)}
    left_out = {name: path for name, path in inner.items() if is_left_out(path, root.excluded)}
    return [entry for entry in entries if entry.name not in left_out], list(left_out.values())


def _listed_locally(entry: os.DirEntry[str], top: str) -> ListedFile:
    relative = _relative(entry.path, top)
    try:
        status = entry.stat()
    except OSError as error:
        kind = "is a link that cannot be followed" if entry.is_symlink() else "cannot be looked at"
        return ListedFile(_readable(relative), "", f"{kind}: {told(error)}")
    return ListedFile(_readable(relative), _local_version(status), _why_not_an_image_file(relative, status.st_mode))


def _local_version(status: os.stat_result) -> str:
    # The time of the last status change is in it because no program can set it; archives restore that of modification.
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _why_not_an_image_file(relative: str, mode: int) -> str | None:
    if stat.S_ISDIR(mode):
        return "is a folder, not an image"
    if not stat.S_ISREG(mode):
        return "is a pipe, socket or device, not an image; it was not opened"
    if _readable(relative) != relative:
        return "has a name that is not UTF-8; rename it"
    return None if is_inner_path(relative) else NO_KEY


def _list_remote(root: ImageRoot) -> tuple[list[ListedFile], list[str]]:
    try:
        root.filesystem.invalidate_cache()
        found = root.filesystem.find(root.path, detail=True)
    except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
        raise SpecError(f"{root.name} cannot be listed: {told(error)}; check image_dir and storage_options") from error
    if root.path in found:
        raise SpecError(f"{root.name} is a file; image_dir takes folders")
    files: list[ListedFile] = []
    left_out: set[str] = set()
    for path, info in found.items():
        relative = path.removeprefix(root.path).removeprefix("/")
        if (folder := _folder_left_out(relative, root.excluded)) is not None:
            left_out.add(folder)
        elif _has_suffix(path) and info["type"] == "file":
            files.append(_listed_remotely(relative, info))
    return files, sorted(left_out)


def _named_locally(root: ImageRoot, key: str) -> ListedFile:
    relative = key.removeprefix(root.prefix)
    if not is_inner_path(relative):
        return ListedFile(key, "", NOT_INSIDE)
    try:
        status = Path(root.path_of(key)).stat()
    except FileNotFoundError:
        return ListedFile(key, "", NOT_THERE)
    except ImageError as error:
        return ListedFile(key, "", str(error))
    except (OSError, ValueError) as error:  # ValueError: a name that this file system cannot have
        return ListedFile(key, "", f"cannot be looked at: {told(error)}")
    return ListedFile(key, _local_version(status), _why_not_an_image_file(relative, status.st_mode))


def _named_remotely(root: ImageRoot, keys: Sequence[str]) -> list[ListedFile]:
    inner = {key: key.removeprefix(root.prefix) for key in keys if is_inner_path(key.removeprefix(root.prefix))}
    found: dict[str, Mapping[str, object]] = {}
    for folder in sorted({relative.rpartition("/")[0] for relative in inner.values()}):
        found |= _files_in(root, folder)
    listed = []
    for key in keys:
        if key not in inner:
            listed.append(ListedFile(key, "", NOT_INSIDE))
        elif inner[key] not in found:
            listed.append(ListedFile(key, "", NOT_THERE))
        else:
            listed.append(ListedFile(key, _remote_version(found[inner[key]])))
    return listed


def _files_in(root: ImageRoot, folder: str) -> dict[str, Mapping[str, object]]:
    """What the backend tells of the files directly in a folder of the root, by their paths relative to the root."""
    try:
        root.filesystem.invalidate_cache()
        entries = root.filesystem.ls("/".join(filter(None, (root.path.rstrip("/"), folder))), detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
        raise SpecError(
            f"{root.name} cannot be listed: {told(error)}; check the image folder and storage_options"
        ) from error
    return {
        entry["name"].removeprefix(root.path).removeprefix("/"): entry for entry in entries if entry["type"] == "file"
    }


def _folder_left_out(relative: str, excluded: frozenset[str]) -> str | None:
    """The outermost folder on the way to a file that is not to be searched, None where there is none."""
    folders = accumulate(relative.split("/")[:-1], lambda outer, name: f"{outer}/{name}")
    return next((folder for folder in folders if is_left_out(folder, excluded)), None)


def _listed_remotely(relative: str, info: Mapping[str, object]) -> ListedFile:
    return ListedFile(relative, _remote_version(info), None if is_inner_path(relative) else NO_KEY)


def _remote_version(info: Mapping[str, object]) -> str:
    return " ".join(str(info[name]) for name in ("size", *VERSION_FIELDS) if info.get(name) is not None)


def _has_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_under(folder: Path, top: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(top))


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_symlink() and entry.is_dir()
    return False


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.replace(os.sep, "/").split("/") if part)


def _relative(path: str, top: str) -> str:
    return path.removeprefix(top).lstrip(os.sep).replace(os.sep, "/")


def _readable(relative: str) -> str:
    # JSON cannot hold what Python makes of bytes that are not UTF-8, so they are written as a backslash and digits.
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def told(error: Exception) -> str:
    """What an error says that users may see: no password of a URL, and no place on this machine.

    Of an error of the operating system only what is wrong: its path says where the images lie.
    """
    return getattr(error, "strerror", None) or without_password(f"{type(error).__name__}: {error}")
