"""Files on any fsspec backend: folders with names that people read, and the content-addressed store of artifacts."""

import hashlib
import json
import logging
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from secrets import token_hex
from tempfile import gettempdir
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import ArtifactRef, Json, canonical_json
from tasks.domain.errors import ArtifactError
from tasks.domain.images import is_inner_path

logger = logging.getLogger(__name__)

MANIFEST_FORMAT = 1  # raised when an older autolabel-flow would misread what is written
TEMPORARY = ".tmp-"  # how the names of files start that are still being written
CHUNK = 2**20  # bytes of a streamed file that are written at a time: few calls, little memory


class MissingFileError(ArtifactError):
    """There is no file under this path of a folder."""


class DamagedArtifactError(ArtifactError):
    """An artifact is not, or no longer, what its manifest or its reference says; its argument says what was found."""

    def __str__(self) -> str:
        return f"{self.args[0]}; run the same command again and it is made anew"


@dataclass(frozen=True)
class Folder:
    """A folder on any fsspec backend, in which files go by their paths relative to it.

    `uri` is a local path, taken literally and relative to the working directory, or an fsspec URL (file://, s3://,
    memory://); `storage_options` go to the backend of a URL. They may hold secrets and appear in no message. A folder
    comes to be with its first file. Every method raises ArtifactError for a path that would leave the folder and for
    whatever the backend reports.
    """

    uri: str
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def write(self, path: str, payload: bytes) -> None:
        """Put `payload` at `path`, in place of what was there; readers find the old file or the new one, whole."""
        with self._open(path) as (filesystem, target):
            if isinstance(filesystem, LocalFileSystem):
                _replace_local(Path(target), payload)
            else:
                _put(filesystem, target, payload)

    def write_stream(self, path: str, pieces: Iterable[bytes]) -> None:
        """Like `write`, for a file of any size: no more than a piece of it is in memory.

        An error while the pieces are made is raised as it is, and leaves what was at `path`. A remote backend gets the
        file when it is whole; until then it lies in the temporary folder of this machine.
        """
        with self._open(path) as (filesystem, target):
            is_local = isinstance(filesystem, LocalFileSystem)
            place = Path(target).parent if is_local else Path(gettempdir())
            place.mkdir(parents=True, exist_ok=True)
        temporary = place / f"{TEMPORARY}{token_hex(8)}"
        try:
            for chunk in _chunks(pieces):
                with self._open(path), temporary.open("ab") as file:
                    file.write(chunk)
            with self._open(path) as (filesystem, target):
                if is_local:
                    temporary.replace(target)
                else:
                    filesystem.put_file(str(temporary), target)
        finally:
            temporary.unlink(missing_ok=True)

    def append(self, path: str, payload: bytes) -> None:
        """Add `payload` to the end of the file at `path`, which need not exist yet.

        For small files with one writer: object stores cannot append, so the file is read and written again there.
        """
        with self._open(path) as (filesystem, target):
            if isinstance(filesystem, LocalFileSystem):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                with Path(target).open("ab") as file:
                    file.write(payload)
            else:
                before = b""
                with suppress(FileNotFoundError):
                    before = filesystem.cat_file(target)
                _put(filesystem, target, before + payload)

    def read(self, path: str) -> bytes:
        """The bytes of the file at `path`; raises MissingFileError where there is none."""
        with self._open(path) as (filesystem, target):
            payload: bytes = filesystem.cat_file(target)
            return payload

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder at `path`."""
        with self._open(path) as (filesystem, target):
            filesystem.invalidate_cache()
            return bool(filesystem.exists(target))

    def names(self, path: str | None = None) -> list[str]:
        """The sorted names of what is directly in `path`, by default in this folder; none where it does not exist."""
        with self._open(path) as (filesystem, target):
            filesystem.invalidate_cache()
            try:
                entries = filesystem.ls(target, detail=False)
            except FileNotFoundError:
                return []
            names = {entry.rstrip("/").rpartition("/")[2] for entry in entries}
            return sorted(name for name in names if not name.startswith(TEMPORARY))

    def delete_tree(self, path: str) -> None:
        """Delete the file, or the folder and all that is in it, at `path`; nothing happens where there is none."""
        if self.exists(path):
            with self._open(path) as (filesystem, target):
                if isinstance(filesystem, LocalFileSystem):
                    filesystem.rm(target, recursive=True)
                else:
                    _delete_remote(filesystem, target)

    @property
    def place(self) -> tuple[str, ...]:
        """Where the folder really is: two addresses of one folder have the same place, and below it places begin so.

        Links are followed, `..` and empty parts are resolved, and what caches a file system counts as that.
        """
        with self._open(None) as (filesystem, root):
            while isinstance(filesystem, CachingFileSystem):
                filesystem = filesystem.fs
            if isinstance(filesystem, LocalFileSystem):
                return Path(os.path.realpath(root)).parts
            backend = f"{type(filesystem).__name__} {getattr(filesystem, 'host', '')}"
            return (backend, *PurePosixPath(posixpath.normpath(f"/{root.lstrip('/')}")).parts)

    @contextmanager
    def _open(self, path: str | None) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it (None: of this folder), with the backend's errors told in our words."""
        address = without_password(self.uri)
        what = address if path is None else f"{path!r} in {address}"
        if path is not None and not is_inner_path(path):
            raise ArtifactError(
                f"{path!r} does not name a file inside {address}; expected a relative path with forward slashes "
                "and neither '..' nor empty parts"
            )
        try:
            filesystem, root = _filesystem(self.uri, self.storage_options)
            yield filesystem, f"{root.rstrip('/')}/{path}" if path is not None else root
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{path!r} was not found in {address}; check the address, and whether it was moved or deleted"
            ) from error
        except Exception as error:  # the backends' own errors (botocore, aiohttp, google.api_core) share no base class
            raise ArtifactError(
                f"{what} cannot be used: {type(error).__name__}: {without_password(str(error))}; "
                "check the address, the permissions, the free space and storage_options"
            ) from error


def folder_and_name(address: str, storage_options: Mapping[str, object]) -> tuple[Folder, str]:
    """The folder of the file with this path or URL, and its name there, which is empty behind a final slash."""
    scheme, separator, path = address.rpartition("://")
    folder, slash, name = path.rpartition("/")
    return Folder(f"{scheme}{separator}{folder or slash}" or ".", storage_options), name


def _filesystem(uri: str, storage_options: Mapping[str, object]) -> tuple[Any, str]:
    if "://" in uri:
        filesystem, root = url_to_fs(uri, **storage_options)
        return filesystem, root
    # Path.expanduser raises where no such user is known; the ~ belongs to a name then, as in a shell.
    return LocalFileSystem(), str(Path(os.path.expanduser(uri)).absolute())  # noqa: PTH111


def _replace_local(target: Path, payload: bytes) -> None:
    # The temporary name is short and not derived from the target's, which may have all 255 bytes already.
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{token_hex(8)}")
    try:
        temporary.write_bytes(payload)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of CHUNK or more, but for the last one; there is always one."""
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


def _put(filesystem: Any, target: str, payload: bytes) -> None:
    # Object stores have no folders to make, so the parent is made only for a backend that misses it.
    try:
        filesystem.pipe_file(target, payload)
    except FileNotFoundError:
        filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(target, payload)


def _delete_remote(filesystem: Any, target: str) -> None:
    # Not filesystem.rm, which takes *, ? and [ in the target for a pattern and may delete what lies beside it.
    for file in filesystem.find(target):
        filesystem.rm_file(file)
    for folder in sorted(filesystem.find(target, withdirs=True), reverse=True):  # where a backend has real ones
        filesystem.rmdir(folder)


@dataclass(frozen=True)
class ArtifactStore:
    """Artifacts named by what they are made of: the cache between runs, and what references refer to.

    An artifact is data and a manifest, `<kind>/<key[:2]>/<key>.<sha256[:16]>.json` and `<key>.manifest.json` under
    `uri` (see Folder for `uri` and `storage_options`). The data is written first and the manifest last, and every
    reader checks the digest, so that an artifact exists whole or not at all on every backend and without a lock. Two
    runs may publish other bytes under one key (GPUs round differently): each reference keeps its own data, and the
    next run finds the one whose manifest stands.
    """

    uri: str
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def lookup(self, kind: str, key: str) -> ArtifactRef | None:
        """The artifact under `key`, or None where it has to be made, or made again because it is damaged.

        Raises ArtifactError for a manifest that a newer autolabel-flow wrote, and when the store cannot be reached.
        """
        try:
            return self._whole(kind, key)
        except DamagedArtifactError as damage:
            logger.warning("%s; it is made again", damage.args[0])
            return None

    def publish(
        self,
        kind: str,
        key: str,
        payload: bytes,
        counts: Mapping[str, Json] | None = None,
        replaces: ArtifactRef | None = None,
    ) -> ArtifactRef:
        """Store `payload` under `key`, with the `counts` that sum it up, and return the reference to it.

        Where another run was faster, its artifact stands and is returned: both answer to the same key. Only an
        artifact that the caller knows and has made better, `replaces`, gives way. Raises ArtifactError when the store
        cannot be written.
        """
        with suppress(DamagedArtifactError):
            faster = self._whole(kind, key)
            if faster is not None and faster != replaces:
                return faster
        ref = ArtifactRef(kind, key, hashlib.sha256(payload).hexdigest())
        manifest: Json = {
            "format": MANIFEST_FORMAT,
            "sha256": ref.sha256,
            "bytes": len(payload),
            "counts": counts or {},
        }
        self._folder.write(_data_path(ref), payload)
        self._folder.write(_manifest_path(kind, key), canonical_json(manifest))
        return ref

    def read(self, ref: ArtifactRef) -> bytes:
        """The bytes that `ref` refers to; raises DamagedArtifactError when they are gone or others."""
        path = _data_path(ref)
        try:
            payload = self._folder.read(path)
        except MissingFileError as error:
            raise DamagedArtifactError(_found(self.uri, path, "is missing")) from error
        if (found := hashlib.sha256(payload).hexdigest()) != ref.sha256:
            raise DamagedArtifactError(_found(self.uri, path, f"has sha256 {found}, expected {ref.sha256}"))
        return payload

    def counts(self, ref: ArtifactRef) -> dict[str, Json]:
        """What was counted when `ref` was published; raises DamagedArtifactError when its manifest is gone."""
        manifest = self._manifest(ref.kind, ref.key)
        if manifest is None or manifest["sha256"] != ref.sha256:
            path = _manifest_path(ref.kind, ref.key)
            raise DamagedArtifactError(_found(self.uri, path, f"does not describe the bytes with sha256 {ref.sha256}"))
        return dict(manifest["counts"])

    def _whole(self, kind: str, key: str) -> ArtifactRef | None:
        manifest = self._manifest(kind, key)
        if manifest is None:
            return None
        ref = ArtifactRef(kind, key, manifest["sha256"])
        self.read(ref)
        return ref

    def _manifest(self, kind: str, key: str) -> dict[str, Any] | None:
        path = _manifest_path(kind, key)
        try:
            manifest = json.loads(self._folder.read(path))
        except MissingFileError:
            return None
        except ValueError as error:
            raise DamagedArtifactError(_found(self.uri, path, "is not JSON")) from error
        if _is_newer(manifest):
            raise ArtifactError(
                _found(self.uri, path, f"is of format {manifest['format']}, newer than {MANIFEST_FORMAT}, which this ")
                + "autolabel-flow reads; upgrade autolabel-flow or set another cache_dir"
            )
        if not _is_manifest(manifest):
            raise DamagedArtifactError(_found(self.uri, path, f"is not a manifest of format {MANIFEST_FORMAT}"))
        return manifest  # type: ignore[no-any-return]

    @property
    def _folder(self) -> Folder:
        return Folder(self.uri, self.storage_options)


def _data_path(ref: ArtifactRef) -> str:
    return f"{ref.kind}/{ref.key[:2]}/{ref.key}.{ref.sha256[:16]}.json"


def _manifest_path(kind: str, key: str) -> str:
    return f"{kind}/{key[:2]}/{key}.manifest.json"


def _found(uri: str, path: str, what: str) -> str:
    return f"{path} under {without_password(uri)} {what}"


def _is_newer(manifest: object) -> bool:
    version = manifest.get("format") if isinstance(manifest, dict) else None
    return isinstance(version, int) and version > MANIFEST_FORMAT


def _is_manifest(manifest: object) -> bool:
    return (
        isinstance(manifest, dict)
        and manifest.get("format") == MANIFEST_FORMAT
        and re.fullmatch("[0-9a-f]{64}", str(manifest.get("sha256"))) is not None
        and isinstance(manifest.get("counts"), dict)
    )
