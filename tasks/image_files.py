"""Image files: which there are, their bytes, and their pixels; the one place that opens pixels.

What counts as an image file is told in tasks/image_roots.py. Which pixels it has:

* A file is decoded by its content, whatever its suffix: a PNG named .jpg is read.
* Of animations and documents the first frame counts. EXIF orientation is applied, exactly once.
* Alpha is dropped, as `cv2.imread` and `Image.convert("RGB")` do: what is labelled are the pixels that a detector
  trained on the labels will see.
* 16-bit channels keep their high byte, for grey as Pillow does for RGB: the same brightness in every image, whatever
  else is in it. 32-bit integer and float pixels have no range to scale from; they are refused.
"""

import hashlib
import io
import re
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import sleep
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from tasks.domain.errors import ImageError
from tasks.domain.images import Image as IndexedImage
from tasks.domain.images import is_inner_path
from tasks.image_roots import NOT_INSIDE, ImageRoot, ListedFile, open_roots, told

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
# Seconds before a file of a remote backend is asked for again. A dropped connection or a busy server is over by then;
# who is away for longer costs each image no more than this, and the next run tries again.
PAUSES = (0.5, 2.0)
# What no pause mends.
LASTING_ERRORS = (FileNotFoundError, PermissionError)
# Messages about files that can still be read (odd EXIF, over 89 megapixels, palettes with alpha).
PILLOW_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

Result = TypeVar("Result")
Pixels: TypeAlias = NDArray[np.uint8]


class FetchError(ImageError):
    """The bytes of an image could not be fetched; unlike damage in the bytes that may pass."""


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
    backends of URLs; they may hold secrets and appear in no message. `excluded` are folders or URLs that are not
    searched where they lie below a root: the results and the cache of earlier runs. In one that is itself a root, only
    the folders are left out that runs make there. A root below an excluded folder is searched; it was asked for.

    Raises SpecError where the roots cannot be used.
    """

    roots: tuple[str, ...]
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    excluded: tuple[str, ...] = ()

    def list_images(self) -> list[ListedFile]:
        """All files with the suffix of an image, sorted by key; raises SpecError for a root that holds none.

        Folders that cannot be searched are listed too, with the reason.
        """
        listed = [file for root in self._roots for file in root.list_images()]
        return sorted(listed, key=lambda file: file.key)

    def list_named(self, keys: Iterable[str]) -> list[ListedFile]:
        """The files of these keys, each once, sorted by key, whatever their suffix; raises SpecError for a lost root.

        A key that names nothing, or leaves the roots, is listed too, with the reason.
        """
        by_root: dict[str, list[str]] = {root.prefix: [] for root in self._roots}
        strangers: list[ListedFile] = []
        for key in sorted(set(keys)):
            prefix = next((prefix for prefix in by_root if key.startswith(prefix)), None)
            if prefix is None:
                strangers.append(ListedFile(key, "", NOT_INSIDE))
            else:
                by_root[prefix].append(key)
        listed = [file for root in self._roots for file in root.list_named(by_root[root.prefix])]
        return sorted([*listed, *strangers], key=lambda file: file.key)

    def read(self, key: str) -> bytes:
        """The bytes of the image file `key`; raises ImageError for a foreign key, FetchError where it cannot be read.

        Never waits for a pipe or a device. A remote backend that fails is asked again after each of PAUSES. The
        messages leave out the key, which stands beside them wherever they go.
        """
        root, path = self._locate(key)
        try:
            if root.is_local and not stat.S_ISREG(Path(path).stat().st_mode):
                raise FetchError("is no regular file; it was not opened")
            return _fetch(root, path)
        except FetchError:
            raise
        except FileNotFoundError as error:
            raise FetchError("is not there, or not any more; was it moved or deleted?") from error
        except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
            raise FetchError(f"cannot be read: {told(error)}; check the permissions and run again") from error

    def read_ahead(self, keys: Iterable[str], workers: int) -> Iterator[tuple[str, bytes | ImageError]]:
        """Every key with its bytes, or why there are none, in the order of `keys`, read by `workers` threads.

        At most 2 * `workers` files are held in memory, so that a slow consumer stops the reading.
        """
        return _in_order(self.read, keys, workers)

    def probe_ahead(self, keys: Iterable[str], workers: int) -> Iterator[tuple[str, Probe | ImageError]]:
        """Like `read_ahead`, and the threads decode too: every key with its probe, or why there is none."""
        return _in_order(lambda key: probe(self.read(key)), keys, workers)

    @cached_property
    def _roots(self) -> tuple[ImageRoot, ...]:
        return open_roots(self.roots, self.storage_options, self.excluded)

    def _locate(self, key: str) -> tuple[ImageRoot, str]:
        root = next((root for root in self._roots if key.startswith(root.prefix)), None)
        if root is None or not is_inner_path(key.removeprefix(root.prefix)):
            roots = ", ".join(root.name for root in self._roots)
            raise ImageError(
                f"{key!r} names no image under {roots}; expected a path relative to the image root, "
                "with forward slashes and without '..'"
            )
        return root, root.path_of(key)


def _fetch(root: ImageRoot, path: str) -> bytes:
    for pause in () if root.is_local else PAUSES:
        try:
            return bytes(root.filesystem.cat_file(path))
        except LASTING_ERRORS:
            raise
        except Exception:  # noqa: BLE001 - the backends' own errors (botocore, aiohttp) share no base class
            sleep(pause)
    return bytes(root.filesystem.cat_file(path))


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


def decode_unchanged(data: bytes | ImageError, image: IndexedImage) -> Pixels:
    """The upright pixels (H, W, 3) of an image; an ImageError where it cannot be read or is not the one indexed."""
    if isinstance(data, ImageError):
        raise data
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise ImageError("changed after it was indexed; run again to label the file as it is now")
    return decode(data)


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
        raise ImageError(f"cannot be decoded: {told(error)}") from error


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
