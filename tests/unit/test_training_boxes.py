"""COCO files to learn from: which boxes count, and everything that makes a file useless."""

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tasks.domain.errors import FormatError, SpecError
from tasks.domain.images import Failure, Image, ImageIndex
from tasks.domain.training_boxes import LabelledBoxes, Limits
from tasks.formats.training_boxes import dump_labelled_boxes, load_labelled_boxes, read_labelled_boxes

INDEX = ImageIndex(
    (Image("a.png", "a" * 64, 100, 80), Image("b/c.png", "b" * 64, 60, 60)), (Failure("broken.png", "index", "is cut"),)
)
IMAGES = {1: "a.png", 2: "b/c.png", 3: "broken.png"}
ALL = Limits()
SQUARE = {"segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}


def read(
    *rows: dict[str, Any], limits: Limits = ALL, masks: bool = False, learns: bool = True, **images: Any
) -> LabelledBoxes:
    document = {
        "images": [{"id": i, "file_name": name} for i, name in IMAGES.items()] + list(images.get("more", [])),
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"image_id": 1, "category_id": 1, **row} for row in rows],
    }
    return read_labelled_boxes(json.dumps(document).encode(), INDEX, limits, masks=masks, learns=learns)


def problem_of(*rows: dict[str, Any], **more: Any) -> str:
    with pytest.raises(SpecError) as refused:
        read(*rows, **more)
    return str(refused.value)


def test_a_box_is_clipped_to_its_image() -> None:
    """M-3: TAO drops it."""
    assert read({"bbox": [-10, 70, 30, 30]}).boxes.tolist() == [[0, 70, 20, 80]]


def test_images_without_a_box_are_no_part_of_it() -> None:
    boxes = read({"bbox": [0, 0, 9, 9]}, {"bbox": [5, 5, 9, 9]})
    assert ([image.key for image in boxes.images], boxes.image_of.tolist()) == (["a.png"], [0, 0])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"bbox": [0, 0, 20, 20], "iscrowd": 1}, "a crowd (iscrowd)"),
        ({"bbox": [0, 0, 2, 20]}, "not wider and higher than 2 pixels inside the image"),
        ({"bbox": [200, 0, 20, 20]}, "not wider and higher than 2 pixels inside the image"),
        ({"bbox": [0, 0, 10, 10]}, "not larger than min_obj_size"),
        ({"bbox": [0, 0, 50, 50]}, "not smaller than max_obj_size"),
        ({"bbox": [0, 0, 20, 20], "image_id": 3}, "in an image that cannot be read"),
    ],
)
def test_a_box_that_does_not_count_is_counted_under_its_reason(row: dict[str, Any], reason: str) -> None:
    """M-3, MAL-3, MAL-22: TAO's warning about boxes that it leaves out never prints."""
    boxes = read({"bbox": [1, 1, 20, 20]}, row, limits=Limits(100, 2500))
    assert (len(boxes), dict(boxes.left_out)) == (1, {reason: 1})


def test_an_image_that_cannot_be_read_is_told_with_its_reason() -> None:
    boxes = read({"bbox": [1, 1, 20, 20]}, {"bbox": [1, 1, 20, 20], "image_id": 3})
    assert boxes.failures == INDEX.failures


def test_all_that_is_wrong_with_the_images_is_told_at_once() -> None:
    more = [
        {"id": 4, "file_name": "gone.png"},
        {"id": 5, "file_name": "../up.png"},
        {"id": 6, "file_name": "a.png", "width": 80, "height": 100},
    ]
    message = problem_of(*({"bbox": [0, 0, 9, 9], "image_id": i} for i in (4, 5, 6)), more=more)
    assert "../up.png would leave the image folder" in message
    assert "gone.png is not in the image folder" in message
    assert "a.png (80 x 100 there, 100 x 80 in the file)" in message


def test_a_file_without_a_box_that_counts_is_refused_with_the_reasons() -> None:
    message = problem_of({"bbox": [0, 0, 9, 9], "iscrowd": 1}, {"bbox": [0, 0, 1, 9]})
    assert "none of 2 boxes counts: 1 a crowd (iscrowd); 1 not wider" in message


def test_boxes_that_are_all_whole_images_have_nothing_to_tell_from() -> None:
    assert "every box is its whole image" in problem_of({"bbox": [0, 0, 100, 80]})


def test_boxes_that_are_all_whole_images_can_be_measured_with() -> None:
    assert len(read({"bbox": [0, 0, 100, 80]}, learns=False)) == 1


def test_masks_are_kept_as_pycocotools_has_them() -> None:
    (counts,) = read({"bbox": [10, 10, 20, 20], **SQUARE}, masks=True).masks or ()
    (expected,) = coco_mask.frPyObjects(SQUARE["segmentation"], 80, 100)
    assert counts.encode() == expected["counts"]


@pytest.mark.parametrize("segmentation", [{}, {"segmentation": []}, {"segmentation": {"size": [9, 9], "counts": "!"}}])
def test_a_box_without_a_mask_is_refused_with_the_way_out(segmentation: dict[str, Any]) -> None:
    assert "load_mask: false" in problem_of({"bbox": [10, 10, 20, 20], **segmentation}, masks=True)


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_kept_comes_back_equal(masks: bool) -> None:
    rows = [{"bbox": [10, 10, 20, 20], **SQUARE}, {"bbox": [0.125, 0, 20, 9], "image_id": 2, **SQUARE}]
    boxes = read(*rows, {"bbox": [0, 0, 9, 9], "image_id": 3}, masks=masks)
    again = load_labelled_boxes(dump_labelled_boxes(boxes))
    assert dump_labelled_boxes(again) == dump_labelled_boxes(boxes)
    assert np.array_equal(again.boxes, boxes.boxes)
    assert again.images == boxes.images


def test_what_is_not_kept_by_us_is_refused() -> None:
    with pytest.raises(FormatError, match="not the boxes of a training"):
        load_labelled_boxes(b"{}")
