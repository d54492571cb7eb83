"""Image files: which there are, their bytes, and their pixels; the one place that opens pixels.

What counts as an image file is told in tasks/image_sources/image_roots.py. Which pixels it has:

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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from tasks.domain.errors import ImageError, SpecError
from tasks.domain.images import Image as IndexedImage
from tasks.domain.images import is_inner_path
from tasks.image_sources.filesystems import read_file
from tasks.image_sources.image_roots import NOT_INSIDE, SUFFIXES, ImageRoot, ListedFile, Survey, open_roots, shown, told
from tasks.image_sources.local_listing import list_local, named_locally
from tasks.image_sources.remote_listing import list_remote, named_remotely
from tasks.in_order import in_order
from tasks.storage.retrying import is_transient, retrying

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
# Messages about files that can still be read (odd EXIF, over 89 megapixels, palettes with alpha).
PILLOW_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

Result = TypeVar("Result")
Pixels: TypeAlias = NDArray[np.uint8]


class FetchError(ImageError):
    """The bytes of an image could not be fetched, or not be held; unlike damage in the bytes that may pass."""


@dataclass(frozen=True)
class Probe:
    """What is found when an image file is decoded: its digest and the size of the upright image in pixels."""

    sha256: str
    width: int
    height: int


@dataclass(frozen=True, repr=False)
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
    storage_options: Mapping[str, object] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(shown, self.roots))})"

    @property
    def addresses(self) -> tuple[str, ...]:
        """For every root what its keys begin with and where it really is, in the order of the roots.

        Without secrets. Two sources with the same addresses hold the same images under the same keys; with others,
        equal keys may be other images, even where size and time of modification agree.
        """
        return tuple(root.address for root in self._roots)

    def list_images(self) -> Iterator[ListedFile]:
        """All files with the suffix of an image, sorted by key; raises SpecError for a root that holds none.

        Folders that cannot be searched are listed too, with the reason. Of local roots and of those with folders no
        more than a few folders are in memory at a time; object stores are listed at once. Every root is looked into
        before the first file is given.
        """
        # No prefix begins another, so that the keys of a root stand together.
        listings = [_listing(root) for root in sorted(self._roots, key=lambda root: root.prefix)]
        firsts = [next(listing) for listing in listings]
        yield from chain.from_iterable(map(chain, ([first] for first in firsts), listings))

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
        listed = [file for root in self._roots for file in _named(root, by_root[root.prefix])]
        return sorted([*listed, *strangers], key=lambda file: file.key)

    def read(self, key: str) -> bytes:
        """The bytes of the image file `key`; raises ImageError for a foreign key, FetchError where it cannot be read.

        Never waits for a pipe or a device, and for a remote backend no longer than tasks/image_sources/limits.py says:
        after an error that may pass it is asked again, a few times. The messages leave out the key, which stands beside
        them wherever they go.
        """
        root, path = self._locate(key)
        try:
            return _read_local(path) if root.is_local else _read_remote(root, path)
        except FetchError:
            raise
        except FileNotFoundError as error:
            raise FetchError("is not there, or not any more; was it moved or deleted?") from error
        except Exception as error:  # the backends' own errors (botocore, aiohttp) share no base class
            raise FetchError(f"cannot be read: {root.told(error)}; check the permissions and run again") from error

    def read_ahead(self, keys: Iterable[str], workers: int) -> Generator[tuple[str, bytes | ImageError]]:
        """Every key with its bytes, or why there are none, in the order of `keys`, read by `workers` threads.

        At most 2 * `workers` files are held in memory, so that a slow consumer stops the reading.
        """
        return in_order(partial(_or_error, self.read), keys, workers)

    def probe_ahead(self, keys: Iterable[str], workers: int) -> Generator[tuple[str, Probe | ImageError]]:
        """Like `read_ahead`, and the threads decode too: every key with its probe, or why there is none."""
        return in_order(partial(_or_error, lambda key: probe(self.read(key))), keys, workers)

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


def _listing(root: ImageRoot) -> Iterator[ListedFile]:
    survey, is_empty = Survey(), True
    for file in list_local(root, survey) if root.is_local else list_remote(root, survey):
        is_empty = False
        yield ListedFile(root.prefix + file.key, file.version, file.reason) if root.prefix else file
    survey.tell(root.name)
    if is_empty:
        beside = " outside hidden folders and the results of earlier runs" if survey.left_out.count else ""
        raise SpecError(f"{root.name} holds no images ({' '.join(SUFFIXES)}){beside}; check image_dir")


def _named(root: ImageRoot, keys: Sequence[str]) -> list[ListedFile]:
    return named_locally(root, keys) if root.is_local else named_remotely(root, keys)


def _read_local(path: str) -> bytes:
    file = Path(path)
    if not stat.S_ISREG(file.stat().st_mode):
        raise FetchError("is no regular file; it was not opened")
    return file.read_bytes()


def _read_remote(root: ImageRoot, path: str) -> bytes:
    if not root.outage.may_ask():
        raise FetchError("was not asked for: its server has not answered for minutes; run again when it does")
    try:
        data = retrying(lambda: read_file(root.filesystem, path))
    except Exception as error:
        (root.outage.failed if is_transient(error) else root.outage.answered)()
        raise
    root.outage.answered()
    return data


def _or_error(work: Callable[[str], Result], key: str) -> Result | ImageError:
    try:
        return work(key)
    except ImageError as error:
        return type(error)(str(error))  # its traceback would keep the bytes of the file alive


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
    except MemoryError as error:  # no word about the bytes, so the index may not remember it
        raise FetchError("did not fit into memory; run again with more of it free") from error
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
