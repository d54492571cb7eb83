"""The masks artifact: nothing that the segmenter said is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tasks.domain.errors import FormatError
from tasks.domain.images import Failure, Image
from tasks.domain.mask_outcomes import AskedImage
from tasks.domain.masks import Mask
from tasks.formats.masks import dump_masks, load_answers, load_masks

BOX = (1.0, 2.0, 30.0, 20.0)
MASK = Mask(48, 64, "PQn01", 7, 0.75)

masks = st.none() | st.builds(
    Mask,
    height=st.just(48),
    width=st.just(64),
    counts=st.text("01PQ^", min_size=1),
    area=st.integers(1, 99),
    quality=st.integers(0, 10_000).map(lambda n: n / 10_000),
)


coordinates = st.floats(0, 1e9)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)


def asked(key, boxes, sha256="ab" * 32):
    return AskedImage(Image(key, sha256, 64, 48), (BOX,) * boxes)


@given(st.dictionaries(st.text(min_size=1), st.lists(masks, min_size=1).map(tuple)))
def test_masks_come_back_in_the_order_of_the_boxes(answers):
    written = dump_masks([(asked(key, len(found)), found) for key, found in answers.items()], [])
    assert load_masks(written) == (answers, ())


@given(st.dictionaries(st.tuples(st.sampled_from(["ab" * 32, "cd" * 32]), boxes), masks))
def test_an_answer_is_found_by_the_content_of_its_image_and_by_its_box_to_the_last_bit(answers):
    images = [
        (AskedImage(Image(f"{i}.png", sha256, 64, 48), (box,)), (mask,))
        for i, ((sha256, box), mask) in enumerate(answers.items())
    ]
    assert load_answers(dump_masks(images, [])) == answers


def test_an_image_without_boxes_answers_nothing():
    written = dump_masks([(asked("a.png", 0), ())], [])
    assert (load_masks(written)[0], load_answers(written)) == ({"a.png": ()}, {})


def test_answers_taken_from_a_file_and_written_again_are_the_same_bytes():
    images = [(asked("a.png", 1), (Mask(48, 64, "PQn01", 7, 1 / 3),)), (asked("b.png", 1, "cd" * 32), (None,))]
    written = dump_masks(images, [])
    known = load_answers(written)
    again = [(image, tuple(known[question] for question in image.questions)) for image, _ in images]
    assert dump_masks(again, []) == written


def test_failures_come_back_sorted():
    failures = [Failure("b.png", "segment", "is gone"), Failure("a.png", "segment", "is gone")]
    assert load_masks(dump_masks([], failures)) == ({}, tuple(sorted(failures)))


def test_a_mask_is_written_as_coco_has_it():
    (image,) = json.loads(dump_masks([(asked("a.png", 1), (MASK,))], []))["images"]
    (entry,) = image["masks"]
    assert image["boxes"] == [list(BOX)]
    assert coco_mask.toBbox({**entry["segmentation"], "counts": MASK.counts.encode()}).shape == (4,)


def test_a_box_without_a_mask_says_why():
    (image,) = json.loads(dump_masks([(asked("a.png", 1), (None,))], []))["images"]
    assert image["masks"][0]["mask_failure"] == "no pixel scored above the threshold"


ONE = {"image": "a.png", "sha256": "ab", "boxes": [[0, 0, 1, 1]], "masks": [{"mask_failure": "none"}]}


def test_the_entry_that_the_refused_ones_differ_from_is_read():
    assert load_masks(json.dumps({"images": [ONE], "failures": []}).encode())[0] == {"a.png": (None,)}


@pytest.mark.parametrize(
    "image",
    [
        {},
        ONE | {"masks": []},
        ONE | {"masks": ONE["masks"] * 2},
        ONE | {"boxes": [[0, 0, 1]]},
        ONE | {"boxes": [None]},
        ONE | {"masks": [{"area": 3}]},
        {name: value for name, value in ONE.items() if name != "sha256"},
    ],
)
@pytest.mark.parametrize("load", [load_masks, load_answers])
def test_an_image_with_a_gap_or_without_a_mask_for_each_box_is_refused(load, image):
    with pytest.raises(FormatError, match="not a masks file"):
        load(json.dumps({"images": [image], "failures": []}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"masks":[],"failures":[]}'])
def test_anything_else_is_refused(data):
    with pytest.raises(FormatError, match="not a masks file"):
        load_masks(data)
