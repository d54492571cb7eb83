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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from tasks.domain.addresses import without_password
from tasks.domain.errors import ImageError, SpecError
from tasks.domain.images import folders_at_or_below, key_prefixes, refuse_nested_roots
from tasks.image_sources.filesystems import open_url
from tasks.image_sources.outage import Outage
from tasks.storage.backends import beneath_caches, protocols, without_secrets

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
NOT_THERE = "is not there"
NOT_INSIDE = (
    "has a file_name that leaves the image folder, or cannot be told from a path; expected one relative to it, without "
    "'.' or '..'"
)
NO_KEY = "has a name with empty parts, '..' or a drive in it, which cannot be told from a path; rename it"
IS_FOLDER = "is a folder, not an image"
NO_UTF8 = "has a name that is not UTF-8; rename it"
# What backends call the server or account that they ask (sftp, smb, s3fs, adlfs); with the path it tells two files
# apart. Not the keys and passwords.
SERVER_FIELDS = ("host", "port", "username", "endpoint_url", "account_name")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file that should be an image, by its name.

    `version` is made of what the backend tells about the content without reading it (size and times, ETag). None says
    that it tells nothing that changes with the content: the file has to be looked at each time. `reason` says in words
    why the file is not to be opened, None for the many that are. The key of a folder that cannot be searched ends with
    a slash.
    """

    key: str
    version: str | None
    reason: str | None = None


@dataclass
class Unsearched:
    """Folders in which no images were searched: how many, and the first of them by name."""

    count: int = 0
    example: str = ""

    def add(self, folder: str) -> None:
        """Count a folder, by its path relative to the root."""
        self.count += 1
        self.example = min(self.example or folder, folder)

    def __str__(self) -> str:
        return f"{self.count}, such as {readable(self.example)!r}"


@dataclass
class Survey:
    """What was not searched below a root: links to folders, and folders that are hidden or of earlier runs."""

    links: Unsearched = field(default_factory=Unsearched)
    left_out: Unsearched = field(default_factory=Unsearched)

    def tell(self, root: str) -> None:
        """Say so in the log, in a line for each kind."""
        if self.links.count:
            logger.warning("linked folders in %s were not searched: %s", root, self.links)
        if self.left_out.count:
            what = f"hidden folders and results of earlier runs: {self.left_out}"
            logger.info("not searched in %s were %s", root, what)


@dataclass(frozen=True)
class ImageRoot:
    """An opened image root.

    `name` is its address as it may be shown, `path` what `filesystem` calls it, `prefix` what its keys begin with (""
    or "name/"). `excluded` are folders that are not searched, relative to the root ("" is the root itself). `outage`
    remembers whether its server is away.
    """

    name: str
    filesystem: Any
    path: str
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    prefix: str = ""
    excluded: frozenset[str] = frozenset()
    outage: Outage = field(default_factory=Outage, compare=False)

    @property
    def is_local(self) -> bool:
        """Whether the images are files of this machine, as paths or behind file://."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders that lead to the root; that of a URL begin with the protocol."""
        if self.is_local:
            return _parts(self.path)
        scheme, path = self._scheme_and_path
        return (scheme, *_parts(path))

    @property
    def place(self) -> tuple[str, ...]:
        """Where the root really is, whichever links lead there; two addresses of one folder have the same place."""
        if self.is_local:
            return _parts(os.path.realpath(self.path))
        scheme, path = self._scheme_and_path
        server = _server(self)
        return (f"{scheme}://{server}" if server else f"{scheme}:/", *_parts(path))

    @property
    def address(self) -> str:
        """What the keys begin with, and where the root really is, without secrets."""
        return f"{self.prefix} {'/'.join(('file:', *self.place) if self.is_local else self.place)}"

    @property
    def _scheme_and_path(self) -> tuple[str, str]:
        scheme, _, path = self.path.rpartition("://")  # HTTP's paths are URLs
        return scheme or protocols(self.filesystem)[0], path

    def told(self, error: Exception) -> str:
        """What an error of the backend says, without the secrets of its options."""
        return without_secrets(told(error), self.storage_options)

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


def walk(scan: Callable[[str], Iterator[ListedFile | str]]) -> Iterator[ListedFile]:
    """All files below a folder, sorted by key, with no more than the folders on the way to one in memory.

    `scan` gives the files of the folder with this path ("" or "folder/", relative to the root), and the folders in it,
    as such paths among the files. They come in the order of these texts: all keys below "a/" begin so, therefore they
    stand between those of what is before and behind the folder.
    """
    folders = [scan("")]
    while folders:
        entry = next(folders[-1], None)
        if entry is None:
            folders.pop()
        elif isinstance(entry, str):
            folders.append(scan(entry))
        else:
            yield entry


def has_suffix(name: str) -> bool:
    """Whether a file is named like an image."""
    return name.lower().endswith(SUFFIXES)


def readable(relative: str) -> str:
    """A path as JSON can hold it: of what is not UTF-8 the bytes are written as a backslash and digits."""
    return relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(uri: str) -> str:
    """The path or URL of a root without what may be secret: a password, or a token in the place of user or query."""
    return without_password(uri)


def told(error: Exception) -> str:
    """What an error says that users may see: no password of a URL, and no place on this machine.

    Of an error of the operating system only what is wrong: its path says where the images lie.
    """
    return without_password(str(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"))


def _places(uris: Sequence[str], storage_options: Mapping[str, object]) -> list[tuple[str, ...]]:
    places = []
    for uri in filter(None, uris):  # an empty one would be the working directory
        with suppress(SpecError):  # what cannot be opened holds no image of a root that can
            places.append(_open_root(uri, storage_options).place)
    return places


def _open_root(uri: str, storage_options: Mapping[str, object]) -> ImageRoot:
    name = shown(uri)
    if "\0" in uri:
        raise SpecError(f"{name!r} cannot be opened: it holds a NUL character, which no path has; check image_dir")
    if "://" not in uri:
        # Path.expanduser raises where no such user is known; the ~ belongs to a name then, as in a shell.
        folder = Path(os.path.expanduser(uri)).absolute()  # noqa: PTH111
        return ImageRoot(name, LocalFileSystem(), os.path.normpath(folder))
    try:
        filesystem, path = open_url(uri, storage_options)
    except Exception as error:  # an unknown protocol, a package that is not installed, a wrong option
        raise SpecError(
            f"{name} cannot be opened: {without_secrets(told(error), storage_options)}; check the image folder and "
            "storage_options"
        ) from error
    return ImageRoot(name, filesystem, path, storage_options)


def _server(root: ImageRoot) -> str:
    """What tells the server of a root from others of its protocol, where that is not in the path."""
    filesystem = beneath_caches(root.filesystem)
    options = {**getattr(filesystem, "ssh_kwargs", {}), **getattr(filesystem, "client_kwargs", {})}
    told_by = [getattr(filesystem, name, None) or options.get(name) for name in SERVER_FIELDS]
    chain = root.name if "::" in root.name and filesystem is root.filesystem else None  # such as an archive
    return without_password(" ".join(str(value) for value in (*told_by, chain) if value))


def _is_under(folder: Path, top: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(top))


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.replace(os.sep, "/").split("/") if part)
