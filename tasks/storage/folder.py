"""Files on any fsspec backend, under the names that people read."""

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import gettempdir
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from tasks.domain.addresses import without_password
from tasks.domain.errors import ArtifactError, AutoLabelError
from tasks.domain.images import is_inner_path
from tasks.storage.backends import beneath_caches, is_read_only, open_backend, without_secrets
from tasks.storage.local_files import (
    append_file,
    delete_left_over,
    delete_tree,
    files_below,
    left_over_below,
    move_durably,
    replace_file,
)
from tasks.storage.remote_files import delete_all, exists, find_files, find_left_over, list_names, put_whole, upload
from tasks.storage.retrying import chain_of, is_missing, is_of_the_name, is_out_of_space, is_transient, retrying
from tasks.storage.temporaries import TEMPORARY, temporary_name

T = TypeVar("T")

READERS = 16  # threads that read many small files: an object store answers after some 30 ms
CHUNK = 2**20  # bytes of a streamed file that are written at a time: few calls, little memory
_LOCAL = LocalFileSystem()


class MissingFileError(ArtifactError):
    """There is no file under this path of a folder."""


class UnusableNameError(ArtifactError):
    """No file can have this name there; others can be written."""


@dataclass(frozen=True, order=True)
class StoredFile:
    """A file of a folder: its path there, its size in bytes, and when it was written.

    `modified` is in seconds since 1970 (POSIX) by the backend's clock, and 0 where the backend tells no time.
    """

    path: str
    bytes: int
    modified: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Folder:
    """A folder on any fsspec backend, in which files go by their paths relative to it.

    `uri` is a local path, taken literally and relative to the working directory, or an fsspec URL (file://, s3://,
    memory://); nothing can be written at http:// and https://. `storage_options` go to the backend of a URL, see
    tasks/storage/backends.py; they may hold secrets and appear in no message. A folder comes to be with its first file,
    but a bucket has to be there.

    A file is written whole or not at all: a killed process, a full disk and a cut connection leave what was there. An
    error of a remote backend that may pass is waited for, see tasks/storage/retrying.py. Every method raises
    ArtifactError for a path that would leave the folder and for whatever the backend reports in the end.
    """

    uri: str
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def write(self, path: str, payload: bytes) -> None:
        """Put `payload` at `path`, in place of what was there; readers find the old file or the new one, whole.

        On a local disk a power cut may take the bytes. What is written so can bear that: the digest of an artifact is
        checked when it is read. To wait for the disk takes 0.5 ms (an SSD) to 10 ms each, ten times the writing.
        """
        if self._is_local:
            self._use(path, lambda _, target: replace_file(Path(target), payload))
        else:
            self._put(path, lambda filesystem, target: filesystem.pipe_file(target, payload))

    def write_stream(self, path: str, pieces: Iterable[bytes]) -> None:
        """Like `write`, for a file of any size: no more than a piece of it is in memory. A power cut leaves it whole.

        An error while the pieces are made is raised as it is, and leaves what was at `path`. A remote backend gets the
        file when it is whole; until then it lies in the temporary folder of this machine.
        """
        self._refuse_to_write()
        _, target = self._use(path, lambda *place: place)
        with self._kept(path, Path(target).parent if self._is_local else Path(gettempdir()), pieces) as whole:
            if self._is_local:
                self._use(path, lambda _, target: move_durably(whole, Path(target)))
            else:
                self._put(path, partial(upload, whole))

    @contextmanager
    def _kept(self, path: str, place: Path, pieces: Iterable[bytes]) -> Iterator[Path]:
        """A temporary file in a folder of this machine, which holds all pieces; gone behind the context."""
        where = "" if self._is_local else f", kept in {place} until it is whole,"
        with self._told(path, where):
            place.mkdir(parents=True, exist_ok=True)
        if not self._is_local:
            delete_left_over(place)  # nobody else looks for it there
        temporary = place / temporary_name()
        try:
            for chunk in _chunks(pieces):
                with self._told(path, where), temporary.open("ab") as file:
                    file.write(chunk)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def append(self, path: str, payload: bytes) -> None:
        """Add `payload` to the end of the file at `path`, which need not exist yet.

        For small files with one writer: only a local file can be added to, so any other is read and written again. A
        local file may be left with a part of `payload`.
        """
        if self._is_local:
            self._use(path, lambda _, target: append_file(Path(target), payload))
        else:
            before = b""
            with suppress(MissingFileError):
                before = self.read(path)
            self.write(path, before + payload)

    def read(self, path: str) -> bytes:
        """The bytes of the file at `path`; raises MissingFileError where there is none."""
        return self._use(path, lambda filesystem, target: bytes(filesystem.cat_file(target)))

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder at `path`."""
        return self._use(path, lambda *place: Path(place[1]).exists() if self._is_local else exists(*place))

    def names(self, path: str | None = None) -> list[str]:
        """The sorted names of what is directly in `path`, by default in this folder; none where it does not exist."""
        names = self._use(path, list_names)
        return sorted(name for name in names if not name.startswith(TEMPORARY))

    def files(self, path: str | None = None) -> list[StoredFile]:
        """Every file below `path`, by default in this folder, sorted; none where there is no such folder.

        Links to folders of this machine are not followed.
        """
        found = self._use(path, lambda *place: files_below(Path(place[1])) if self._is_local else find_files(*place))
        stored = (StoredFile("/".join(filter(None, (path, name))), size, modified) for name, size, modified in found)
        return sorted(file for file in stored if not file.path.rpartition("/")[2].startswith(TEMPORARY))

    def temporaries(self) -> list[StoredFile]:
        """What processes were writing when they were killed, sorted; not what a living one writes."""
        find = (lambda *place: left_over_below(Path(place[1]))) if self._is_local else find_left_over
        return sorted(StoredFile(*found) for found in self._use(None, find))

    def delete_temporaries(self) -> int:
        """Delete those `temporaries` that may be deleted; how many there were."""
        deleted = 0
        for file in self.temporaries():
            with suppress(ArtifactError):  # another user's, or deleted meanwhile
                self._use(file.path, lambda filesystem, target: filesystem.rm_file(target))
                deleted += 1
        return deleted

    def read_all(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Every file of `paths` that there is, with its bytes, in their order; several are read at a time."""
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(paths), READERS * READERS):
                chunk = paths[start : start + READERS * READERS]
                for path, payload in zip(chunk, pool.map(self._read_if_there, chunk), strict=True):
                    if payload is not None:
                        yield path, payload

    def _read_if_there(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except MissingFileError:
            return None

    def delete_tree(self, path: str) -> None:
        """Delete the file, or the folder and all that is in it, at `path`; nothing happens where there is none."""
        self._use(path, lambda *place: delete_tree(Path(place[1])) if self._is_local else delete_all(*place))

    @property
    def place(self) -> tuple[str, ...]:
        """Where the folder really is: two addresses of one folder have the same place, and below it places begin so.

        Links are followed, `..` and empty parts are resolved, and what caches a file system counts as that.
        """
        return self._use(None, _place)

    @property
    def _is_local(self) -> bool:
        return "://" not in self.uri or self.uri.startswith(("file://", "local://"))

    def _put(self, path: str, put: Callable[[Any, str], object]) -> None:
        """Have `put` make the file at `path` of a remote backend."""
        self._refuse_to_write()
        try:
            self._use(path, lambda filesystem, target: put_whole(filesystem, target, put))
        except MissingFileError as error:
            raise ArtifactError(
                f"{self._what(path)} cannot be written: there is no such bucket or folder; make it, or check the "
                "address"
            ) from error

    def _refuse_to_write(self) -> None:
        if is_read_only(self.uri):
            raise ArtifactError(
                f"{without_password(self.uri)} is read only, as everything behind http and https is: expected a local "
                "folder or a URL such as s3:// to write to; set results_dir and cache_dir"
            )

    def _use(self, path: str | None, work: Callable[[Any, str], T]) -> T:
        """What `work` makes of the file system and the path in it (None: of this folder)."""
        with self._told(path):
            if path is not None and not is_inner_path(path):
                raise ArtifactError(
                    f"{self._shown(path)!r} does not name a file inside {without_password(self.uri)}; expected a "
                    "relative path with forward slashes and neither '..' nor empty parts"
                )
            if self._is_local:
                return work(*self._open(path))
            return retrying(partial(self._try, path, work))

    def _try(self, path: str | None, work: Callable[[Any, str], T]) -> T:
        filesystem, target = self._open(path)
        try:
            return work(filesystem, target)
        except Exception as error:
            if is_transient(error) and not filesystem.async_impl:
                # It holds one connection, which is lost; without it the next try opens another.
                filesystem.clear_instance_cache()
            raise

    def _open(self, path: str | None) -> tuple[Any, str]:
        if "://" in self.uri:
            filesystem, root = self._open_backend()
        else:
            # Path.expanduser raises where no such user is known; the ~ belongs to a name then, as in a shell.
            filesystem, root = _LOCAL, str(Path(os.path.expanduser(self.uri)).absolute())  # noqa: PTH111
        return filesystem, f"{root.rstrip('/')}/{path}" if path is not None else root

    def _open_backend(self) -> tuple[Any, str]:
        try:
            return open_backend(self.uri, self.storage_options)
        except FileNotFoundError as error:  # of a key, or a token taken for the name of one: no file of the folder
            raise ArtifactError(
                f"{without_password(self.uri)} cannot be opened: a file that it needs was not found: "
                f"{without_secrets(str(error), self.storage_options)}; check storage_options"
            ) from None

    def _what(self, path: str | None) -> str:
        address = without_password(self.uri)
        return address if path is None else f"{self._shown(path)!r} in {address}"

    def _shown(self, path: str) -> str:
        """A path without its query, which only those of web servers have; it may be a signature."""
        return path.partition("?")[0] if is_read_only(self.uri) else path

    @contextmanager
    def _told(self, path: str | None, kept: str = "") -> Iterator[None]:
        """Tell the errors of a backend in our words; they share no base class (botocore, aiohttp, google.api_core)."""
        try:
            yield
        except AutoLabelError:
            raise
        except Exception as error:  # noqa: BLE001 - raised again as one of ours
            messages = [str(link) for link in chain_of(error)]
            told = [without_secrets(message, self.storage_options) for message in messages]
            cause = error if told == messages else None  # a traceback shows the messages of the whole chain
            address = without_password(self.uri)
            if is_missing(error):
                what = address if path is None else repr(self._shown(path))
                where = "" if path is None else f" in {address}"
                raise MissingFileError(
                    f"{what} was not found{where}; check the address, and whether it was moved or deleted"
                ) from cause
            found = ": ".join(filter(None, (type(error).__name__, " ".join(told[0].split()))))
            kind = UnusableNameError if is_of_the_name(error) else ArtifactError
            raise kind(f"{self._what(path)}{kept} cannot be used: {found}; {_way_out(error)}") from cause


def _place(filesystem: Any, root: str) -> tuple[str, ...]:
    filesystem = beneath_caches(filesystem)
    if isinstance(filesystem, LocalFileSystem):
        return Path(os.path.realpath(root)).parts
    backend = f"{type(filesystem).__name__} {getattr(filesystem, 'host', '')}"
    return (backend, *PurePosixPath(posixpath.normpath(f"/{root.lstrip('/')}")).parts)


def _way_out(error: Exception) -> str:
    if is_out_of_space(error):
        return "no space is left there, or a quota is used up; make room, then run the same command again"
    if is_transient(error):
        return "it was asked several times; run the same command again when it answers"
    return "check the address, the permissions and storage_options"


def folder_and_name(address: str, storage_options: Mapping[str, object]) -> tuple[Folder, str]:
    """The folder of the file with this path or URL, and its name there, which is empty behind a final slash."""
    # Web servers know files by a query, too, in which slashes part nothing.
    base, mark, query = address.partition("?") if is_read_only(address) else (address, "", "")
    scheme, separator, path = base.rpartition("://")
    folder, slash, name = path.rpartition("/")
    return Folder(f"{scheme}{separator}{folder or slash}" or ".", storage_options), f"{name}{mark}{query}"


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of CHUNK or more, but for the last one; there is always one."""
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)
