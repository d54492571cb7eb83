"""The masks artifact of a shard: what the segmenter answered about every box that it was asked about.

One JSON object in ASCII, an entry a line:

* `masks`: shaped like COCO results, the boxes of an image one after the other in the order in which they were asked:
  `image`, `bbox` [x, y, width, height] in pixels, the part inside the image, and `segmentation` (run-length code,
  compressed), `area` in pixels and `mask_quality`, or `mask_failure` with the reason why there is no mask.
* `failures`: the images that could not be read: `image`, `stage`, `reason`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from tasks.domain.errors import FormatError
from tasks.domain.images import Failure
from tasks.domain.mask_outcomes import NO_PIXEL, AskedImage
from tasks.domain.masks import Mask
from tasks.formats.coco import box_xywh
from tasks.formats.failures import failure_entry, parse_failure

Masks: TypeAlias = tuple[Mask | None, ...]  # of the boxes of an image; None where no pixel passed the threshold

QUALITY_DECIMALS = 4  # the quality ranks masks for people to look at; more digits tell them nothing


def dump_masks(answers: Sequence[tuple[AskedImage, Masks]], failures: Sequence[Failure]) -> bytes:
    """The masks file of these images, in their order; failures are sorted."""
    masks = [entry for asked, masks in answers for entry in _mask_entries(asked, masks)]
    return b'{"masks":[\n%b\n],\n"failures":[\n%b\n]}\n' % (
        _lines(masks),
        _lines([failure_entry(failure) for failure in sorted(failures)]),
    )


def load_masks(data: bytes) -> tuple[dict[str, Masks], tuple[Failure, ...]]:
    """The masks of every image by its key, in the order of the boxes asked, and the images that could not be read.

    Raises:
        FormatError: The bytes are no masks file.
    """
    try:
        document = json.loads(data)
        masks: dict[str, list[Mask | None]] = {}
        for entry in document["masks"]:
            masks.setdefault(entry["image"], []).append(_parse_mask(entry))
        failures = tuple(map(parse_failure, document["failures"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"not a masks file: {type(error).__name__} {error}; delete it and run again") from error
    return {key: tuple(of_image) for key, of_image in masks.items()}, failures


def mask_entry(mask: Mask) -> dict[str, Any]:
    """What a mask adds to an annotation or a result of COCO."""
    return {
        "segmentation": {"size": [mask.height, mask.width], "counts": mask.counts},
        "area": mask.area,
        "mask_quality": round(mask.quality, QUALITY_DECIMALS),
    }


def _lines(entries: Sequence[Mapping[str, Any]]) -> bytes:
    return ",\n".join(json.dumps(entry, separators=(",", ":"), allow_nan=False) for entry in entries).encode()


def _mask_entries(asked: AskedImage, masks: Masks) -> Iterator[dict[str, Any]]:
    for box, mask in zip(asked.boxes, masks, strict=True):
        found = {"image": asked.image.key, "bbox": box_xywh(box)}
        yield found | ({"mask_failure": NO_PIXEL.reason} if mask is None else mask_entry(mask))


def _parse_mask(entry: Mapping[str, Any]) -> Mask | None:
    if "mask_failure" in entry:
        return None
    segmentation = entry["segmentation"]
    height, width = segmentation["size"]
    return Mask(height, width, segmentation["counts"], entry["area"], entry["mask_quality"])
