"""The masks artifact of a shard: what the segmenter answered about every box that it was asked about.

One JSON object in ASCII, an image a line:

* `images`: `image`, the key; `sha256` of the image file, for which the answers hold, under whatever name; `boxes`
  [left, top, right, bottom] in pixels, the parts inside the image, as they were asked, to the last bit; `masks`, one
  for each box: `segmentation` (run-length code, compressed), `area` in pixels and `mask_quality`, as in a COCO
  annotation, or `mask_failure` with the reason why there is no mask.
* `failures`: the images that could not be read: `image`, `stage`, `reason`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from tasks.domain.boxes import Box
from tasks.domain.errors import FormatError
from tasks.domain.images import Failure
from tasks.domain.mask_outcomes import NO_PIXEL, AskedBox, AskedImage
from tasks.domain.masks import Mask
from tasks.formats.failures import failure_entry, parse_failure

Masks: TypeAlias = tuple[Mask | None, ...]  # of the boxes of an image; None where no pixel passed the threshold

QUALITY_DECIMALS = 4  # the quality ranks masks for people to look at; more digits tell them nothing


def dump_masks(answers: Sequence[tuple[AskedImage, Masks]], failures: Sequence[Failure]) -> bytes:
    """The masks file of these images, in their order; failures are sorted."""
    return b'{"images":[\n%b\n],\n"failures":[\n%b\n]}\n' % (
        _lines(_image_entry(asked, masks) for asked, masks in answers),
        _lines(failure_entry(failure) for failure in sorted(failures)),
    )


def load_masks(data: bytes) -> tuple[dict[str, Masks], tuple[Failure, ...]]:
    """The masks of every image by its key, in the order of the boxes asked, and the images that could not be read.

    Raises:
        FormatError: The bytes are no masks file.
    """
    images, failures = _parse(data)
    return {image.key: image.masks for image in images}, failures


def load_answers(data: bytes) -> dict[AskedBox, Mask | None]:
    """What is answered about every box, whatever the image was called.

    Raises:
        FormatError: The bytes are no masks file.
    """
    images, _ = _parse(data)
    return {(image.sha256, box): mask for image in images for box, mask in zip(image.boxes, image.masks, strict=True)}


def mask_entry(mask: Mask) -> dict[str, Any]:
    """What a mask adds to an annotation or a result of COCO."""
    return {
        "segmentation": {"size": [mask.height, mask.width], "counts": mask.counts},
        "area": mask.area,
        "mask_quality": round(mask.quality, QUALITY_DECIMALS),
    }


class _Answered(NamedTuple):
    key: str
    sha256: str
    boxes: tuple[Box, ...]
    masks: Masks


def _lines(entries: Iterable[Mapping[str, Any]]) -> bytes:
    return ",\n".join(json.dumps(entry, separators=(",", ":"), allow_nan=False) for entry in entries).encode()


def _image_entry(asked: AskedImage, masks: Masks) -> dict[str, Any]:
    return {
        "image": asked.image.key,
        "sha256": asked.image.sha256,
        "boxes": asked.boxes,
        "masks": [
            {"mask_failure": NO_PIXEL.reason} if mask is None else mask_entry(mask)
            for _, mask in zip(asked.boxes, masks, strict=True)
        ],
    }


def _parse(data: bytes) -> tuple[list[_Answered], tuple[Failure, ...]]:
    try:
        document = json.loads(data)
        return [_parse_image(entry) for entry in document["images"]], tuple(map(parse_failure, document["failures"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"not a masks file: {type(error).__name__} {error}; delete it and run again") from error


def _parse_image(entry: Mapping[str, Any]) -> _Answered:
    boxes = tuple((left, top, right, bottom) for left, top, right, bottom in entry["boxes"])
    masks = tuple(_parse_mask(mask) for _, mask in zip(boxes, entry["masks"], strict=True))
    return _Answered(entry["image"], entry["sha256"], boxes, masks)


def _parse_mask(entry: Mapping[str, Any]) -> Mask | None:
    if "mask_failure" in entry:
        return None
    segmentation = entry["segmentation"]
    height, width = segmentation["size"]
    return Mask(height, width, segmentation["counts"], entry["area"], entry["mask_quality"])
