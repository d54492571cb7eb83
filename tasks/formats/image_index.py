"""The image index as JSON lines: one image a line, sorted by key, readable or with the reason why not.

{"height": 480, "image": "a/1.jpg", "sha256": "...", "width": 640}
{"image": "a/2.jpg", "reason": "is empty", "stage": "index"}
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.domain.artifacts import canonical_json
from tasks.domain.errors import FormatError
from tasks.domain.images import Failure, Image, ImageIndex

SHA256 = re.compile("[0-9a-f]{64}")


def write_image_index(index: ImageIndex) -> bytes:
    """The index as UTF-8 JSON lines; equal indices give equal bytes."""
    lines = [(image.key, canonical_json(_image_record(image))) for image in index.images]
    lines += [(failure.image, canonical_json(vars(failure))) for failure in index.failures]
    return b"".join(line + b"\n" for _, line in sorted(lines))


def read_image_index(data: bytes) -> ImageIndex:
    """The index that `write_image_index` wrote; raises FormatError with the number of the line that is not one."""
    entries = list(_entries(data))
    images = sorted(entry for entry in entries if isinstance(entry, Image))
    failures = sorted(entry for entry in entries if isinstance(entry, Failure))
    return ImageIndex(tuple(images), tuple(failures))


def joined_index(parts: Iterable[ImageIndex]) -> ImageIndex:
    """The index of all images, of which each part holds some, in the order of their keys."""
    together = list(parts)
    return ImageIndex(
        tuple(image for part in together for image in part.images),
        tuple(failure for part in together for failure in part.failures),
    )


def _image_record(image: Image) -> dict[str, str | int]:
    return {"image": image.key, "sha256": image.sha256, "width": image.width, "height": image.height}


def _entries(data: bytes) -> Iterator[Image | Failure]:
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise FormatError(
                f"line {number} of the image index is not JSON: {error}; index the images again"
            ) from error
        yield _entry(record, number)


def _entry(record: Any, number: int) -> Image | Failure:
    if _fits(record, {"image": str, "sha256": str, "width": int, "height": int}):
        if SHA256.fullmatch(record["sha256"]) and min(record["width"], record["height"]) > 0:
            return Image(record["image"], record["sha256"], record["width"], record["height"])
    elif _fits(record, {"image": str, "stage": str, "reason": str}):
        return Failure(**record)
    raise FormatError(
        f"line {number} of the image index is {record!r}; expected an object with image, sha256, width and height, or "
        "with image, stage and reason; index the images again"
    )


def _fits(record: Any, fields: Mapping[str, type]) -> bool:
    return isinstance(record, dict) and {name: type(value) for name, value in record.items()} == fields
