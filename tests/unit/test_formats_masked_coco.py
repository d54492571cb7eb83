"""What a mask, or the lack of one, makes of an annotation: all else stays."""

import json
import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tasks.domain.images import Failure, Image, ImageIndex
from tasks.domain.mask_outcomes import NoMask, Unmasked
from tasks.domain.masks import Mask
from tasks.formats.coco_boxes import ImageRows
from tasks.formats.masked_coco import BoxedImage, drawn, identified, masked_rows, settled
from tasks.formats.rle import encode_patch

IMAGE = Image("a.png", "ab" * 32, 64, 48)
MASK = Mask(48, 64, encode_patch(np.ones((10, 20), dtype=np.bool_), 5, 6, 48, 64), 200, 0.87654321)
BOX = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 6, 20, 10], "score": 0.5, "note": "ü"}
CROWD = BOX | {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [3072]}, "area": 3}
POLYGON = [[5, 6, 25, 6, 25, 11, 5, 11]]  # the upper half of MASK


def boxed(*rows: dict[str, Any], image: Image | Failure = IMAGE, **fields: Any) -> BoxedImage:
    return BoxedImage(ImageRows({"id": 1, "file_name": "a.png"} | fields, rows), image)


def row_with(mask: Mask | None, row: dict[str, Any], *, compare: bool = False) -> dict[str, Any]:
    (out,) = masked_rows(settled(boxed(row), {"a.png": (mask,)}, {}), compare=compare).annotations
    return out


def test_m4_a_mask_brings_its_area_and_quality_and_leaves_all_else():
    """M-4, MAL-14: the published output has the box's area, and no score."""
    out = row_with(MASK, BOX | {"iscrowd": 0, "area": 1, "segmentation": [[1, 1, 2, 2, 3, 3]]})
    segmentation = {"size": [48, 64], "counts": MASK.counts}
    assert out == BOX | {"iscrowd": 0, "area": 200, "segmentation": segmentation, "mask_quality": 0.8765}
    assert coco_mask.area(segmentation) == 200


def test_without_a_mask_the_reason_is_told_and_the_area_stays():
    out = row_with(None, BOX | {"area": 199.5, "segmentation": [[1, 1, 2, 2, 3, 3]]})
    reason = "no pixel scored above the threshold"
    assert out == BOX | {"area": 199.5, "segmentation": [], "mask_failure": reason, "iscrowd": 0}


def test_what_an_earlier_run_told_of_a_mask_does_not_stay():
    stale = {"mask_quality": 0.1, "mask_failure": "gone", "iou": 0.2}
    assert "mask_failure" not in row_with(MASK, BOX | stale)
    assert {"mask_quality", "iou"}.isdisjoint(row_with(None, BOX | stale))


def test_a_crowd_region_keeps_its_own_segmentation_and_is_not_asked_about():
    """M-4, MAL-14: the published output clears `iscrowd`."""
    image = boxed(CROWD)
    (out,) = masked_rows(settled(image, {}, {}), compare=False).annotations
    assert image.asked is None
    assert out == CROWD | {"mask_failure": "a crowd region has no instance mask"}


@pytest.mark.parametrize(
    ("bbox", "inside"),
    [([-5, -5, 10, 10], (0, 0, 5, 5)), ([60, 40, 99, 99], (60, 40, 64, 48)), ([1, 1, 1, 1], (1, 1, 2, 2))],
)
def test_m3_of_a_box_that_leaves_the_image_the_part_inside_is_asked_and_the_box_stays(bbox, inside):
    """M-3: TAO drops such boxes."""
    image = boxed(BOX | {"bbox": bbox})
    (out,) = masked_rows(settled(image, {"a.png": (MASK,)}, {}), compare=False).annotations
    assert image.asked is not None
    assert image.asked.boxes == (inside,)
    assert (out["bbox"], out["area"]) == (bbox, 200)


def test_answers_belong_to_the_boxes_that_were_asked_about():
    rows = [CROWD, BOX, BOX | {"bbox": [99, 99, 1, 1]}, BOX]
    results = settled(boxed(*rows), {"a.png": (None, MASK)}, {}).outcomes
    kinds = [outcome.kind if isinstance(outcome, Unmasked) else outcome for outcome in results]
    assert kinds == [NoMask.CROWD, NoMask.NO_PIXEL, NoMask.OUTSIDE, MASK]


def index(*entries: Image | Failure) -> ImageIndex:
    images = tuple(entry for entry in entries if isinstance(entry, Image))
    return ImageIndex(images, tuple(entry for entry in entries if isinstance(entry, Failure)))


def test_an_image_that_cannot_be_read_keeps_its_records_with_the_reason():
    (image,) = identified([boxed(BOX, CROWD).rows], index(Failure("a.png", "index", "is not there")))
    out = masked_rows(settled(image, {}, {}), compare=False).annotations
    assert [row["mask_failure"] for row in out] == [
        "the image is not there",
        "a crowd region has no instance mask",
    ]


def test_an_image_that_changed_since_is_told_like_one_that_cannot_be_read():
    image = settled(boxed(BOX), {}, {"a.png": Failure("a.png", "segment", "changed")})
    assert image.failure == Failure("a.png", "segment", "changed")
    assert image.outcomes == (Unmasked(NoMask.IMAGE_FAILED, "the image changed"),)


@pytest.mark.parametrize("sizes", [{}, {"width": 64}, {"width": None, "height": 48}, {"width": 64.0, "height": 48}])
def test_m6_an_image_without_a_size_gets_the_real_one(sizes):
    """M-6: TAO takes the size from the file alone."""
    (image,) = identified([boxed(BOX, **sizes).rows], index(IMAGE))
    row = masked_rows(settled(image, {"a.png": (MASK,)}, {}), compare=False).row
    assert (row["width"], row["height"]) == (64, 48)


@pytest.mark.parametrize(
    ("width", "height", "why"), [(48, 64, "turned by its EXIF orientation"), (640, 480, "another frame")]
)
def test_m6_boxes_of_another_size_than_the_image_get_no_masks_and_both_sizes_are_named(width, height, why):
    """M-6: TAO ends with an error of shapes."""
    (image,) = identified([boxed(BOX, width=width, height=height).rows], index(IMAGE))
    assert isinstance(image.image, Failure)
    assert image.asked is None
    for told in ("64 x 48", f"{width} x {height}", why):
        assert told in image.image.reason


@pytest.mark.parametrize(
    ("segmentation", "iou"), [(POLYGON, 0.5), ({"size": [48, 64], "counts": MASK.counts}, 1.0), ([], None), ("x", None)]
)
def test_masks_are_compared_with_those_that_were_there_where_asked(segmentation, iou):
    row = BOX | {"segmentation": segmentation}
    assert row_with(MASK, row, compare=True).get("iou") == iou
    assert "iou" not in row_with(MASK, row)


def test_our_own_labels_tell_of_their_images_themselves():
    rows = boxed(BOX, width=64, height=48, sha256="ab" * 32).rows
    assert identified([rows], None) == (BoxedImage(rows, IMAGE),)


def test_a_picture_shows_what_lies_in_the_image_with_or_without_a_mask():
    rows = [BOX, BOX | {"bbox": [99, 99, 1, 1]}, BOX | {"bbox": [60, 40, 99, 99], "score": None}]
    image = drawn(settled(boxed(*rows), {"a.png": (MASK, None)}, {}), lambda row: str(row["category_id"]))
    assert image is not None
    assert [(label.phrase, label.box, label.score, label.mask) for label in image.annotations] == [
        ("7", (5, 6, 25, 16), 0.5, MASK),
        ("7", (60, 40, 64, 48), None, None),
    ]


@pytest.mark.parametrize(
    "score", [10**400, -(10**400), math.inf, math.nan, True, "high"], ids=lambda score: str(score)[:9]
)
def test_a_score_that_is_no_finite_number_is_drawn_as_none(score):
    image = drawn(settled(boxed(BOX | {"score": score}), {"a.png": (MASK,)}, {}), lambda row: "cat")
    assert image is not None
    assert [label.score for label in image.annotations] == [None]


def test_an_image_that_failed_has_no_picture():
    lost = settled(boxed(BOX, image=Failure("a.png", "index", "is gone")), {}, {})
    assert drawn(lost, lambda row: json.dumps(row)) is None
