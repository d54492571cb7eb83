"""Which part of a box a mask is made of, and why there is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.mask_outcomes import NoMask, Unmasked, part_inside

numbers = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-50, 150)
boxes = st.tuples(numbers, numbers, numbers, numbers)
sizes = st.integers(1, 100)


@given(boxes, sizes, sizes)
def test_what_a_segmenter_is_asked_about_lies_inside_the_image_and_has_an_area(box, width, height):
    part = part_inside(box, width, height)
    if not isinstance(part, Unmasked):
        left, top, right, bottom = part
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@given(boxes, sizes, sizes)
def test_the_part_inside_is_all_inside(box, width, height):
    part = part_inside(box, width, height)
    if not isinstance(part, Unmasked):
        assert part_inside(part, width, height) == part


@given(st.tuples(st.floats(0, 9), st.floats(0, 9), st.floats(10, 20), st.floats(10, 20)))
def test_a_box_inside_the_image_stays_as_it_is(box):
    assert part_inside(box, 20, 20) == box


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((math.nan, 0.0, 5.0, 5.0), NoMask.NOT_FINITE),
        ((0.0, 0.0, math.inf, 5.0), NoMask.NOT_FINITE),
        ((3.0, 3.0, 3.0, 9.0), NoMask.NO_AREA),
        ((5.0, 5.0, 1.0, 9.0), NoMask.NO_AREA),
        ((-9.0, 0.0, 0.0, 5.0), NoMask.OUTSIDE),
        ((20.0, 0.0, 25.0, 5.0), NoMask.OUTSIDE),
    ],
)
def test_a_box_that_gets_no_mask_has_a_reason(box, kind):
    part = part_inside(box, 20, 10)
    assert isinstance(part, Unmasked)
    assert part.kind == kind
