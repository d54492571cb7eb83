"""The candidates artifact: nothing looked at is lost, and the rounding happens once."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.detections import Candidates
from tasks.domain.errors import FormatError
from tasks.domain.images import Failure
from tasks.formats.candidates import LookedAt, dump_candidates, load_candidates

ASKED = ("person", "fire truck", "truck")


def candidates(boxes, scores, phrases, degenerate=0):
    return Candidates(
        ASKED,
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
        np.array(phrases, dtype=np.int64),
        degenerate,
    )


NOTHING = candidates([], [], [])

entries = st.lists(
    st.tuples(st.tuples(*[st.floats(0, 5000)] * 4).map(sorted), st.floats(0, 1), st.integers(0, 2)), max_size=5
)


@st.composite
def looked_at(draw):
    records = draw(st.lists(st.tuples(st.text(min_size=1), st.integers(0, 4)), unique=True, max_size=4))
    found = [list(zip(*draw(entries), strict=True)) or [(), (), ()] for _ in records]
    return [
        LookedAt(key, "0" * 64, caption, candidates(*columns))
        for (key, caption), columns in zip(records, found, strict=True)
    ]


@given(looked_at())
def test_what_was_written_once_is_written_again_byte_for_byte(records):
    written = dump_candidates(records, [])
    assert dump_candidates(load_candidates(written)[0], []) == written


@given(looked_at())
def test_boxes_and_scores_come_back_within_half_a_unit_of_the_rounding(records):
    read, _ = load_candidates(dump_candidates(records, []))
    for (*_, before), (*_, after) in zip(records, read, strict=True):
        # Width and height are rounded too: half a thousandth for the corner, and half of one for the side.
        np.testing.assert_allclose(after.boxes, before.boxes, rtol=0, atol=0.0010001)
        np.testing.assert_allclose(after.scores, before.scores, rtol=0, atol=0.00000050001)


@given(looked_at())
def test_every_record_looked_at_is_there_in_its_order_with_its_phrases(records):
    read, _ = load_candidates(dump_candidates(records, []))
    assert [(*who, found.asked, found.phrases.tolist()) for *who, found in read] == [
        (*who, found.asked, found.phrases.tolist()) for *who, found in records
    ]


def test_a_record_without_candidates_keeps_arrays_of_the_right_shape_and_type():
    ((_, _, _, found),), _ = load_candidates(dump_candidates([LookedAt("a.jpg", "a" * 64, 0, NOTHING)], []))
    assert (found.boxes.shape, found.boxes.dtype) == ((0, 4), np.float64)
    assert (found.scores.dtype, found.phrases.dtype) == (np.float64, np.int64)


def test_the_count_of_degenerate_boxes_comes_back():
    ((_, _, _, found),), _ = load_candidates(
        dump_candidates([LookedAt("a.jpg", "a" * 64, 0, candidates([], [], [], 7))], [])
    )
    assert found.degenerate == 7


def test_failures_come_back_sorted():
    failures = (Failure("b.jpg", "infer", "truncated"), Failure("a.jpg", "infer", "gone"))
    assert load_candidates(dump_candidates([], failures)) == ((), failures[::-1])


def test_candidates_stay_with_their_image_and_caption():
    one = candidates([[1, 2, 3, 4]], [0.5], [2])
    read, _ = load_candidates(
        dump_candidates(
            [
                LookedAt("a.jpg", "a" * 64, 0, NOTHING),
                LookedAt("a.jpg", "a" * 64, 1, one),
                LookedAt("b.jpg", "b" * 64, 1, NOTHING),
            ],
            [],
        )
    )
    assert [(look.image, look.caption_id, len(look.found.scores)) for look in read] == [
        ("a.jpg", 0, 0),
        ("a.jpg", 1, 1),
        ("b.jpg", 1, 0),
    ]


def test_a_candidate_is_shaped_like_a_coco_result():
    one = candidates([[1, 2, 3.0004, 5]], [0.12345678], [2])
    assert json.loads(dump_candidates([LookedAt("a.jpg", "a" * 64, 0, one)], []))["candidates"] == [
        {"image": "a.jpg", "caption_id": 0, "phrase": 2, "bbox": [1, 2, 2, 3], "score": 0.123457}
    ]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"looked_at": [{}], "candidates": [], "failures": []}'])
def test_bytes_of_another_kind_are_refused(data):
    with pytest.raises(FormatError, match="not a candidates file"):
        load_candidates(data)
