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
from tasks.formats.masks import dump_masks, load_masks

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


def asked(key, boxes):
    return AskedImage(Image(key, "ab" * 32, 64, 48), (BOX,) * boxes)


@given(st.dictionaries(st.text(min_size=1), st.lists(masks, min_size=1).map(tuple)))
def test_masks_come_back_in_the_order_of_the_boxes(answers):
    written = dump_masks([(asked(key, len(found)), found) for key, found in answers.items()], [])
    assert load_masks(written) == (answers, ())


def test_failures_come_back_sorted():
    failures = [Failure("b.png", "segment", "is gone"), Failure("a.png", "segment", "is gone")]
    assert load_masks(dump_masks([], failures)) == ({}, tuple(sorted(failures)))


def test_a_mask_is_a_result_as_coco_has_it():
    (entry,) = json.loads(dump_masks([(asked("a.png", 1), (MASK,))], []))["masks"]
    assert entry["bbox"] == [1, 2, 29, 18]
    assert coco_mask.toBbox({**entry["segmentation"], "counts": MASK.counts.encode()}).shape == (4,)


def test_a_box_without_a_mask_says_why():
    (entry,) = json.loads(dump_masks([(asked("a.png", 1), (None,))], []))["masks"]
    assert entry["mask_failure"] == "no pixel scored above the threshold"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"masks":[{}],"failures":[]}'])
def test_anything_else_is_refused(data):
    with pytest.raises(FormatError, match="not a masks file"):
        load_masks(data)
