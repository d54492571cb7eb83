"""Between COCO's rows and the segmenter: which image and boxes a row means, and what a mask makes of a row.

An annotation with a mask gets it as `segmentation` (run-length code), its `area` in pixels, and `mask_quality`. One
without keeps its area, has no segmentation, and says why in `mask_failure`; a crowd region keeps its own segmentation.
Every other field stays, `bbox` too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from tasks.domain.boxes import Box
from tasks.domain.images import Failure, Image, ImageIndex
from tasks.domain.mask_outcomes import (
    CROWD,
    NO_PIXEL,
    AskedImage,
    NoMask,
    Outcome,
    Unmasked,
    image_failed,
    part_inside,
)
from tasks.domain.masks import DrawnImage, DrawnLabel, Mask
from tasks.formats.coco_boxes import ImageRows, Row, as_float, box_of
from tasks.formats.masks import Masks, mask_entry
from tasks.formats.rle import checked_rle, mask_iou

Request: TypeAlias = Box | Unmasked  # the part of a box that is to get a mask, or why nothing is asked

IOU_DECIMALS = 6  # nobody compares masks more closely
_OURS = ("mask_quality", "mask_failure", "iou")  # what an earlier run may have left in a row


@dataclass(frozen=True)
class BoxedImage:
    """The rows of an image, and the image itself or why it cannot be used."""

    rows: ImageRows
    image: Image | Failure

    @property
    def requests(self) -> tuple[Request, ...]:
        """For every annotation the box to ask about, or the reason why it gets no mask."""
        return tuple(_request(row, self.image) for row in self.rows.annotations)

    @property
    def asked(self) -> AskedImage | None:
        """What the segmenter is to see; None where it has nothing to see."""
        boxes = tuple(request for request in self.requests if not isinstance(request, Unmasked))
        return AskedImage(self.image, boxes) if isinstance(self.image, Image) and boxes else None


def identified(images: Iterable[ImageRows], index: ImageIndex | None) -> tuple[BoxedImage, ...]:
    """The images of a shard, as the index knows them; without one the rows themselves tell, as in our own labels."""
    if index is None:
        return tuple(BoxedImage(rows, _told_by(rows.row)) for rows in images)
    found: dict[str, Image | Failure] = {image.key: image for image in index.images}
    found |= {failure.image: failure for failure in index.failures}
    return tuple(BoxedImage(rows, _of_the_same_size(rows.row, found[rows.key])) for rows in images)


@dataclass(frozen=True)
class SettledImage:
    """An image, what came of each of its annotations, and the failure if it could not be used."""

    boxed: BoxedImage
    outcomes: tuple[Outcome, ...]
    failure: Failure | None


def settled(boxed: BoxedImage, masks: Mapping[str, Masks], failures: Mapping[str, Failure]) -> SettledImage:
    """The image with what the masks artifact of its shard says of it, by image key."""
    failure = boxed.image if isinstance(boxed.image, Failure) else failures.get(boxed.rows.key)
    answers = iter(masks.get(boxed.rows.key, ()))
    return SettledImage(boxed, tuple(_outcome(request, answers, failure) for request in boxed.requests), failure)


def masked_rows(image: SettledImage, *, compare: bool) -> ImageRows:
    """The rows of the image with what came of its annotations; an image row without a size gets the real one.

    With `compare`, a mask whose annotation had a segmentation gets their intersection over union as `iou`.
    """
    rows, real = image.boxed.rows, image.boxed.image
    row = rows.row
    if isinstance(real, Image):
        sizes = {"width": real.width, "height": real.height}
        row = row | {name: size for name, size in sizes.items() if row.get(name) is None}
    annotations = (
        _with_outcome(annotation, outcome, compare=compare)
        for annotation, outcome in zip(rows.annotations, image.outcomes, strict=True)
    )
    return ImageRows(row, tuple(annotations))


def drawn(image: SettledImage, name_of: Callable[[Row], str]) -> DrawnImage | None:
    """What a picture of the image shows, its labels called as `name_of` says; None where it could not be used."""
    real = image.boxed.image
    if isinstance(real, Failure) or image.failure:
        return None
    labels = []
    for row, outcome in zip(image.boxed.rows.annotations, image.outcomes, strict=True):
        box = part_inside(box_of(row), real.width, real.height)
        if not isinstance(box, Unmasked):
            mask = outcome if isinstance(outcome, Mask) else None
            labels.append(DrawnLabel(name_of(row), box, _score(row), mask))
    return DrawnImage(real, tuple(labels))


def _told_by(row: Row) -> Image:
    return Image(row["file_name"], row["sha256"], row["width"], row["height"])


def _of_the_same_size(row: Row, found: Image | Failure) -> Image | Failure:
    if isinstance(found, Failure):
        return found
    told = tuple(row.get(name) for name in ("width", "height"))
    real = (found.width, found.height)
    if all(size in (None, truth) for size, truth in zip(told, real, strict=True)):
        return found
    frame = "its boxes are of another frame"
    turned = " (it is turned by its EXIF orientation)" if told == real[::-1] else ""
    sizes = f"{found.width} x {found.height} pixels when upright, and {told[0]} x {told[1]} in the COCO file"
    return Failure(found.key, "index", f"has {sizes}: {frame}{turned}")


def _request(row: Row, image: Image | Failure) -> Request:
    if row.get("iscrowd", 0):
        return CROWD
    if isinstance(image, Failure):
        return image_failed(image.reason)
    return part_inside(box_of(row), image.width, image.height)


def _outcome(request: Request, answers: Iterator[Mask | None], failure: Failure | None) -> Outcome:
    if isinstance(request, Unmasked):
        return request
    if failure is not None:
        return image_failed(failure.reason)
    return next(answers) or NO_PIXEL


def _with_outcome(row: Row, outcome: Outcome, *, compare: bool) -> Row:
    kept = {name: value for name, value in row.items() if name not in _OURS}
    kept.setdefault("iscrowd", 0)  # COCO's own tools ask for it
    if isinstance(outcome, Mask):
        iou = _iou(row.get("segmentation"), outcome) if compare else None
        return kept | mask_entry(outcome) | ({} if iou is None else {"iou": iou})
    own = row.get("segmentation", []) if outcome.kind is NoMask.CROWD else []
    return kept | {"segmentation": own, "mask_failure": outcome.reason}


def _iou(segmentation: object, mask: Mask) -> float | None:
    """Of a mask with the segmentation that its annotation came with; None where that is none."""
    with suppress(ValueError):
        truth = checked_rle(segmentation, mask.height, mask.width)
        ours = checked_rle(mask_entry(mask)["segmentation"], mask.height, mask.width)
        if truth is not None and ours is not None:
            return round(mask_iou(truth, ours), IOU_DECIMALS)
    return None


def _score(row: Row) -> float | None:
    score = row.get("score")
    if not isinstance(score, int | float) or isinstance(score, bool):
        return None
    number = as_float(score)
    return number if math.isfinite(number) else None
