"""Image files: which there are, their bytes, and their pixels; the one place that opens pixels.

What counts as an image file, and which pixels it has:

* A file is listed by its suffix (SUFFIXES, in any case) and decoded by its content: a PNG named .jpg is read.
* Links to files are followed, those that leave the folder too: data sets are often folders of links into a common
  store (DVC, git-annex), and whoever made the folder made the link. Links to folders are not followed, since they may
  lead in circles; how many there are is logged. A folder named like an image is reported, and searched.
* Of animations and documents the first frame counts. EXIF orientation is applied, exactly once.
* Alpha is dropped, as `cv2.imread` and `Image.convert("RGB")` do: what is labelled are the pixels that a detector
  trained on the labels will see.
* 16-bit channels keep their high byte, for grey as Pillow does for RGB: the same brightness in every image, whatever
  else is in it. 32-bit integer and float pixels have no range to scale from; they are refused.
"""

import hashlib
import io
import logging
import os
import re
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from tasks.domain.errors import ImageError, SpecError
from tasks.domain.images import is_inner_path, key_prefixes

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
# Pillow can read more (EPS starts Ghostscript); a file from anywhere that is named .jpg gets only these readers.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
# Twice PIL.Image.MAX_IMAGE_PIXELS, where Pillow raises DecompressionBombError: 512 MiB of RGB.
MOST_PIXELS = 178_956_970
MODES_WITHOUT_RANGE = ("I", "F")  # 32 bits; 16-bit grey is I;16
# The EXIF orientation tells how the stored picture has to be turned to be upright (EXIF 2.32, tag 0x0112).
TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = (5, 6, 7, 8)
# What backends call the fields of `info` that change with a file's content (s3fs, gcsfs, adlfs, sftp, memory).
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
NO_KEY = "has a name with empty parts, '..' or a drive in it, which cannot be told from a path; rename it"
# Messages about files that can still be read (odd EXIF, over 89 megapixels, palettes with alpha).
PILLOW_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

Result = TypeVar("Result")
Pixels: TypeAlias = NDArray[np.uint8]


class FetchError(ImageError):
    """The bytes of an image could not be fetched; unlike damage in the bytes that may pass."""


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
class Probe:
    """What is found when an image file is decoded: its digest and the size of the upright image in pixels."""

    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class ImageSource:
    """The image files under one or several roots, each a local folder or an fsspec URL, searched recursively.

    The key of an image is its POSIX path relative to its root. With several roots, the name of the root's last folder
    goes before it, and as many folders above that as it takes to tell the roots apart. `storage_options` go to the
    backends of URLs; they may hold secrets and appear in no message. Raises SpecError where the roots cannot be used.
    """

    roots: tuple[str, ...]
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def list_images(self) -> list[ListedFile]:
        """All files with the suffix of an image, sorted by key; raises SpecError for a root that holds none.

        Folders that cannot be searched are listed too, with the reason.
        """
        listed = [file for root in self._roots for file in root.list_images()]
        return sorted(listed, key=lambda file: file.key)

    def resolve(self, key: str) -> str:
        """The local path or the URL of the image `key`; raises ImageError for a key that leaves the image roots."""
        root, path = self._locate(key)
        return path if root.is_local else str(root.filesystem.unstrip_protocol(path))

    def read(self, key: str) -> bytes:
        """The bytes of the image file `key`; raises ImageError for a foreign key, FetchError where it cannot be read.

        Never waits for a pipe or a device. The messages leave out the key, which stands beside them wherever they go.
        """
        root, path = self._locate(key)
        try:
            if root.is_local and not stat.S_ISREG(Path(path).stat().st_mode):
                raise FetchError("is no regular file; it was not opened")
            data: bytes = root.filesystem.cat_file(path)
        except FetchError:
            raise
        except FileNotFoundError as error:
            raise FetchError("is not there, or not any more; was it moved or deleted?") from error
        except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
            raise FetchError(f"cannot be read: {_told(error)}; check the permissions and run again") from error
        return data

    def read_ahead(self, keys: Iterable[str], workers: int) -> Iterator[tuple[str, bytes | ImageError]]:
        """Every key with its bytes, or why there are none, in the order of `keys`, read by `workers` threads.

        At most 2 * `workers` files are held in memory, so that a slow consumer stops the reading.
        """
        return _in_order(self.read, keys, workers)

    def probe_ahead(self, keys: Iterable[str], workers: int) -> Iterator[tuple[str, Probe | ImageError]]:
        """Like `read_ahead`, and the threads decode too: every key with its probe, or why there is none."""
        return _in_order(lambda key: probe(self.read(key)), keys, workers)

    @cached_property
    def _roots(self) -> tuple["_Root", ...]:
        opened = [_open_root(uri, self.storage_options) for uri in self.roots]
        prefixes = key_prefixes([root.parts for root in opened])
        return tuple(replace(root, prefix=prefix) for root, prefix in zip(opened, prefixes, strict=True))

    def _locate(self, key: str) -> tuple["_Root", str]:
        root = next((root for root in self._roots if key.startswith(root.prefix)), None)
        if root is None or not is_inner_path(key.removeprefix(root.prefix)):
            raise ImageError(
                f"{key!r} names no image under {', '.join(self.roots)}; expected a path relative to the image root, "
                "with forward slashes and without '..'"
            )
        return root, root.path_of(key)


@dataclass(frozen=True)
class _Root:
    """An opened image root: `path` is what `filesystem` calls it, `prefix` what its keys begin with ("" or "name/")."""

    uri: str
    filesystem: Any
    path: str
    prefix: str = ""

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders that lead to the root; that of a URL begin with the protocol."""
        folders = tuple(part for part in self.path.replace(os.sep, "/").split("/") if part)
        return folders if self.is_local else (self.filesystem.unstrip_protocol("").partition(":")[0], *folders)

    def list_images(self) -> list[ListedFile]:
        files = _list_local(self) if self.is_local else _list_remote(self)
        if not files:
            raise SpecError(f"{self.uri} holds no images ({' '.join(SUFFIXES)}); check image_dir")
        return [replace(file, key=self.prefix + file.key) for file in files]

    def path_of(self, key: str) -> str:
        path = f"{self.path.rstrip('/')}/{key.removeprefix(self.prefix)}"
        if self.is_local and not _is_under(Path(path).parent, self.path):
            raise ImageError(f"{key!r} leaves {self.uri} through a link to a folder; name that folder in image_dir")
        return path


def _open_root(uri: str, storage_options: Mapping[str, object]) -> _Root:
    if "://" not in uri:
        return _Root(uri, LocalFileSystem(), os.path.normpath(Path(uri).expanduser().absolute()))
    try:
        filesystem, path = url_to_fs(uri, **storage_options)
    except Exception as error:  # an unknown protocol, a package that is not installed, a wrong option
        raise SpecError(f"{uri} cannot be opened: {_told(error)}; check image_dir and storage_options") from error
    return _Root(uri, filesystem, path)


def _list_local(root: _Root) -> list[ListedFile]:
    files: list[ListedFile] = []
    links: list[str] = []
    folders = [root.path]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            if folder == root.path:
                raise SpecError(f"{root.uri} cannot be searched: {_told(error)}; check image_dir") from error
            key = _readable(_relative(folder, root.path))
            files.append(ListedFile(key, "", f"is a folder that cannot be searched: {_told(error)}"))
            continue
        folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        links += [entry.path for entry in entries if _links_to_folder(entry)]
        files += [_listed_locally(entry, root.path) for entry in entries if _has_suffix(entry.name)]
    if links:
        example = _readable(_relative(min(links), root.path))
        logger.warning("linked folders in %s were not searched: %d, such as %r", root.uri, len(links), example)
    return files


def _listed_locally(entry: os.DirEntry[str], top: str) -> ListedFile:
    relative = _relative(entry.path, top)
    try:
        status = entry.stat()
    except OSError as error:
        kind = "is a link that cannot be followed" if entry.is_symlink() else "cannot be looked at"
        return ListedFile(_readable(relative), "", f"{kind}: {_told(error)}")
    # The time of the last status change is in it because no program can set it; archives restore that of modification.
    version = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return ListedFile(_readable(relative), version, _why_not_an_image_file(relative, status.st_mode))


def _why_not_an_image_file(relative: str, mode: int) -> str | None:
    if stat.S_ISDIR(mode):
        return "is a folder, not an image"
    if not stat.S_ISREG(mode):
        return "is a pipe, socket or device, not an image; it was not opened"
    if _readable(relative) != relative:
        return "has a name that is not UTF-8; rename it"
    return None if is_inner_path(relative) else NO_KEY


def _list_remote(root: _Root) -> list[ListedFile]:
    try:
        root.filesystem.invalidate_cache()
        found = root.filesystem.find(root.path, detail=True)
    except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
        raise SpecError(f"{root.uri} cannot be listed: {_told(error)}; check image_dir and storage_options") from error
    if root.path in found:
        raise SpecError(f"{root.uri} is a file; image_dir takes folders")
    return [
        _listed_remotely(path.removeprefix(root.path).removeprefix("/"), info)
        for path, info in found.items()
        if _has_suffix(path) and info["type"] == "file"
    ]


def _listed_remotely(relative: str, info: Mapping[str, object]) -> ListedFile:
    version = " ".join(str(info[name]) for name in ("size", *VERSION_FIELDS) if info.get(name) is not None)
    return ListedFile(relative, version, None if is_inner_path(relative) else NO_KEY)


def _has_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_under(folder: Path, top: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(top))


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_symlink() and entry.is_dir()
    return False


def _relative(path: str, top: str) -> str:
    return path.removeprefix(top).lstrip(os.sep).replace(os.sep, "/")


def _readable(relative: str) -> str:
    # JSON cannot hold what Python makes of bytes that are not UTF-8, so they are written as a backslash and digits.
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def _told(error: Exception) -> str:
    # Of an error of the operating system only what is wrong: its path says where the images lie on this machine.
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def _in_order(
    work: Callable[[str], Result], keys: Iterable[str], workers: int
) -> Iterator[tuple[str, Result | ImageError]]:
    def attempt(key: str) -> Result | ImageError:
        try:
            return work(key)
        except ImageError as error:
            return type(error)(str(error))  # its traceback would keep the bytes of the file alive

    pending: deque[tuple[str, Future[Result | ImageError]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for key in keys:
                pending.append((key, pool.submit(attempt, key)))
                if len(pending) == 2 * workers:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def decode(data: bytes) -> Pixels:
    """The upright RGB pixels (height, width, 3), uint8, of an image file's bytes; the array may be written to.

    Raises ImageError with the reason when the bytes are no image, cut short, damaged, of more than MOST_PIXELS, or of
    a kind of pixel without a range.
    """
    with _loaded(data) as image:
        turn = TURN_UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
        return np.array(rgb if turn is None else rgb.transpose(turn))


def probe(data: bytes) -> Probe:
    """The digest and the upright size of an image file's bytes; raises ImageError exactly where `decode` does."""
    with _loaded(data) as image:
        width, height = image.size
        if _orientation(image) in SWAPS_SIDES:
            width, height = height, width
    return Probe(hashlib.sha256(data).hexdigest(), width, height)


@contextmanager
def _loaded(data: bytes) -> Iterator[Image.Image]:
    """The first frame as Pillow has it, all of it decoded, with every error told as an ImageError."""
    _set_up_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse(image)
            image.load()
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # its own message holds a memory address
        kind = f"is none of {', '.join(FORMATS)}, or damaged at its beginning" if data else "is empty"
        raise ImageError(kind) from error
    except Exception as error:  # Pillow's readers raise what the bytes provoke: SyntaxError, struct.error, ...
        raise ImageError(f"cannot be decoded: {_told(error)}") from error


def _refuse(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"has {width} x {height} pixels, more than {MOST_PIXELS}; scale it down")
    if image.mode in MODES_WITHOUT_RANGE:
        raise ImageError("has 32-bit pixels, which have no range to scale from; convert it to 8 or 16 bits")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1 to 8 of a loaded image; 1 where there is none that can be understood."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
        return value if value in TURN_UPRIGHT else 1
    except Exception:  # noqa: BLE001 - EXIF is damaged in as many ways as there are bytes; the pixels are good
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _set_up_pillow() -> None:
    # Another library may have set it, and a half image would be labelled as a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # Not warnings.catch_warnings: images are decoded in threads, and it restores the filters of the whole process.
    if tuple(warnings.filters[:1]) != (PILLOW_QUIET,):
        warnings.filterwarnings("ignore", module=PILLOW_QUIET[3].pattern)
