"""Run-length codes and polygons, checked against pycocotools; whatever a file holds, the interpreter survives."""

import json
import warnings
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from tasks.formats.rle import (
    LONGEST_OUTLINE,
    MOST_PIXELS,
    checked_rle,
    decode_segmentation,
    empty_mask,
    encode_patch,
    mask_area,
    mask_bbox,
    mask_iou,
)

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(np.bool_, shape))
coordinates = st.floats(-10, 20)
polygons = st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8), min_size=1, max_size=3).map(
    lambda parts: [[at for point in part for at in point] for part in parts]
)


def encoded(mask):
    """The mask as pycocotools writes it into a COCO file."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}


def decoded(rle):
    with warnings.catch_warnings():  # pycocotools' decode speaks numpy 1
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(rle).astype(bool)


def runs_of(mask):
    """The lengths of the runs of the mask, column by column, false ones first."""
    pixels = [False, *mask.T.ravel().tolist()]
    edges = [i for i, (before, after) in enumerate(pairwise(pixels)) if before != after]
    return np.diff([0, *edges, mask.size]).tolist()


@given(masks, st.data())
def test_a_patch_is_encoded_as_pycocotools_encodes_the_whole_mask(patch, data):
    above, left, below, right = (data.draw(st.integers(0, 5)) for _ in range(4))
    whole = np.pad(patch, ((above, below), (left, right)))
    assert encode_patch(patch, left, above, *whole.shape) == encoded(whole)["counts"]


def test_a_patch_without_pixels_is_the_empty_mask():
    assert encode_patch(np.zeros((0, 3), dtype=bool), 2, 1, 7, 9) == encoded(np.zeros((7, 9)))["counts"]
    assert empty_mask(7, 9) == coco_mask.encode(np.zeros((7, 9), dtype=np.uint8, order="F"))


@given(masks)
def test_compressed_and_plain_counts_are_decoded_to_the_mask_that_they_were_made_from(mask):
    assert (decode_segmentation(encoded(mask), *mask.shape) == mask).all()
    assert (decode_segmentation({"size": list(mask.shape), "counts": runs_of(mask)}, *mask.shape) == mask).all()


@given(polygons)
def test_polygons_are_filled_as_pycocotools_fills_them(parts):
    theirs = coco_mask.merge(coco_mask.frPyObjects(parts, 10, 10))
    assert (decode_segmentation(parts, 10, 10) == decoded(theirs)).all()
    assert (checked_rle(parts, 10, 10) or empty_mask(10, 10)) == theirs


@given(masks)
def test_a_sound_code_is_checked_to_itself(mask):
    code = encoded(mask)
    expected = {**code, "counts": code["counts"].encode()} if mask.any() else None
    assert checked_rle(code, *mask.shape) == expected
    assert checked_rle({**code, "counts": code["counts"].encode()}, *mask.shape) == expected


@given(st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=1, max_size=20))
def test_runs_of_no_length_change_nothing(runs):
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    if not pixels.size:
        return
    code = {"size": [pixels.size, 1], "counts": runs}
    assert (decode_segmentation(code, pixels.size, 1)[:, 0] == pixels).all()
    assert (checked_rle(code, pixels.size, 1) or empty_mask(pixels.size, 1)) == coco_mask.encode(
        np.asfortranarray(pixels[:, None], dtype=np.uint8)
    )


def test_masks_whose_empty_runs_meet_overlap_as_their_pixels_do():
    one, other = ({"size": [8, 1], "counts": counts} for counts in ([2, 2, 0, 0, 2, 2], [0, 4, 0, 0, 0, 4]))
    assert mask_iou(checked_rle(one, 8, 1), checked_rle(other, 8, 1)) == 0.5


@given(masks, masks)
def test_area_box_and_overlap_are_those_of_the_pixels(one, other):
    height, width = np.maximum(one.shape, other.shape)
    one, other = (np.pad(m, ((0, height - m.shape[0]), (0, width - m.shape[1]))) for m in (one, other))
    a, b = (checked_rle(encoded(m), height, width) or empty_mask(height, width) for m in (one, other))
    assert mask_area(a) == one.sum()
    assert mask_iou(a, b) == pytest.approx((one & other).sum() / max(1, (one | other).sum()))
    if one.any():
        rows, columns = np.nonzero(one)
        left, top = columns.min(), rows.min()
        assert mask_bbox(a) == [left, top, columns.max() - left + 1, rows.max() - top + 1]


@contextmanager
def suppress_in_words():
    """A refusal is fine if it says what was found and what was expected."""
    try:
        yield
    except ValueError as error:
        if not {"found", "expected"} <= set(str(error).split()):
            raise


garbage = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=20),
    st.binary(max_size=20),
    st.lists(st.integers(-3, 60) | st.floats() | st.booleans() | st.integers(), max_size=6),
    st.none(),
)


@given(garbage)
def test_garbage_in_the_counts_is_a_mask_or_refused_in_words(counts):
    code = {"size": [5, 7], "counts": counts}
    with suppress_in_words():
        rle = checked_rle(code, 5, 7)
        assert mask_area(rle or empty_mask(5, 7)) == decode_segmentation(code, 5, 7).sum() <= 35


@given(masks, st.integers(0, 10), st.characters(min_codepoint=48, max_codepoint=111))
def test_a_code_with_one_character_changed_is_a_mask_or_refused(mask, at, character):
    code = encoded(mask)
    counts = code["counts"]
    changed = {**code, "counts": counts[:at] + character + counts[at + 1 :]}
    try:
        pixels = decode_segmentation(changed, *mask.shape)
    except ValueError:
        return
    assert pixels.shape == mask.shape
    assert (pixels == decoded({**changed, "counts": changed["counts"].encode()})).all()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
    max_leaves=12,
)


@given(json_values)
def test_whatever_stands_for_a_segmentation_is_read_or_refused_in_words(segmentation):
    with suppress_in_words():
        rle = checked_rle(segmentation, 4, 4)
        assert rle is None or 0 < mask_area(rle) <= 16


@pytest.mark.parametrize("absent", [None, [], {"size": [4, 4], "counts": [16]}, [[7, 7, 7, 8, 8, 7]]], ids=str)
def test_a_segmentation_without_a_pixel_is_none(absent):
    assert checked_rle(absent, 4, 4) is None


NAN, FAR = float("nan"), 1e9


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 5], "counts": [20]}, r"size \[4, 5\], expected \[4, 4\]"),
        ({"size": "4x4", "counts": [16]}, 'size "4x4"'),
        ({"counts": [16]}, "size null"),
        ({"size": [4, 4]}, "counts null, expected run lengths"),
        ({"size": [4, 4], "counts": [4, 4]}, "add up to 16"),
        ({"size": [4, 4], "counts": [20, -4]}, r"counts \[20, -4\], expected run lengths"),
        ({"size": [4, 4], "counts": [16.0]}, "expected run lengths"),
        ({"size": [4, 4], "counts": [True, 15]}, "expected run lengths"),
        ({"size": [4, 4], "counts": [10**30]}, "expected run lengths"),
        ({"size": [4, 4], "counts": ""}, "compressed run-length code"),
        ({"size": [4, 4], "counts": "~~~"}, "compressed run-length code"),
        ({"size": [4, 4], "counts": "\ud800"}, "compressed run-length code"),
        ({"size": [4, 4], "counts": "P"}, "compressed run-length code"),  # announces a digit that does not follow
        ({"size": [4, 4], "counts": "PPPPPP1"}, "compressed run-length code"),  # a number of seven digits
        ({"size": [4, 4], "counts": "A1"}, "add up to 16"),  # -15 and 1
        ([[0, 0, 3, 3]], "3 points or more"),
        ([[0, 0, 3, 3, 2]], "3 points or more"),
        ([[0, 0, 3, 3, 2, 1, 1]], "3 points or more"),
        ([[]], "3 points or more"),
        ([0, 0, 3, 3, 2, 1], "3 points or more"),
        ([[0, 0, 3, NAN, 2, 1]], "inside 4 x 4"),
        ([[0, 0, 3, "3", 2, 1]], "inside 4 x 4"),
        ([[0, 0, 3, True, 2, 1]], "inside 4 x 4"),
        ([[0, 0, FAR, 0, FAR, FAR]], "inside 4 x 4"),  # ends the interpreter in pycocotools 2.0.11
        ([[0, 0, 10**400, 0, 1, 1]], "inside 4 x 4"),
        ([{"size": [4, 4], "counts": [16]}], "3 points or more"),
        ("mask.png", "expected a list of polygons"),
        (7, "expected a list of polygons"),
        ({}, "size null"),
    ],
    ids=str,
)
def test_what_is_no_mask_of_the_image_is_refused_with_what_was_found(segmentation, message):
    for read in (checked_rle, decode_segmentation):
        with pytest.raises(ValueError, match=message):
            read(segmentation, 4, 4)


def test_an_outline_that_would_take_all_memory_is_refused():
    zigzag = [[0, 0] + [9000, 0, 0, 5] * (LONGEST_OUTLINE // 18_000 + 1)]
    with pytest.raises(ValueError, match="pixels around them, expected at most 10,000,000"):
        checked_rle(zigzag, 10, 9000)


def test_runs_of_the_largest_image_are_read():
    height, width = 2**14, MOST_PIXELS // 2**14
    rle = checked_rle({"size": [height, width], "counts": [1, MOST_PIXELS - 2, 1]}, height, width)
    assert checked_rle(json.loads(json.dumps({**rle, "counts": rle["counts"].decode()})), height, width) == rle
    assert mask_area(rle) == MOST_PIXELS - 2


def test_a_larger_image_is_refused():
    with pytest.raises(ValueError, match="expected 1 to 536,870,912"):
        checked_rle([[0, 0, 3, 3, 2, 1]], 2**15, 2**15)
