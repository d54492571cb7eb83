"""What a box alone suggests, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.box_shapes import filled_box, inscribed_ellipse

WIDTH, HEIGHT = 20, 12
at = st.floats(-30, 30)
boxes = st.tuples(at, at, st.floats(0, 40), st.floats(0, 40)).map(lambda s: (s[0], s[1], s[0] + s[2], s[1] + s[3]))


def whole(patch):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    height, width = patch.pixels.shape
    assert patch.left + width <= WIDTH
    assert patch.top + height <= HEIGHT
    mask[patch.top : patch.top + height, patch.left : patch.left + width] = patch.pixels
    return mask


def centres():
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return x, y


@given(boxes)
def test_a_pixel_is_in_the_box_if_its_centre_is(box):
    left, top, right, bottom = box
    x, y = centres()
    expected = (left <= x) & (x < right) & (top <= y) & (y < bottom)
    assert (whole(filled_box(box, WIDTH, HEIGHT)) == expected).all()


@given(boxes)
def test_the_ellipse_lies_in_its_box(box):
    ellipse, filled = (whole(draw(box, WIDTH, HEIGHT)) for draw in (inscribed_ellipse, filled_box))
    assert (filled | ~ellipse).all()


def test_a_circle_holds_the_centres_within_its_radius():
    x, y = centres()
    expected = np.hypot(x - 8, y - 6) <= 5
    assert (whole(inscribed_ellipse((3.0, 1.0, 13.0, 11.0), WIDTH, HEIGHT)) == expected).all()


def test_the_ellipse_of_a_box_that_leaves_the_image_is_that_of_its_part_inside():
    outside, inside = (-6.0, -3.0, 8.0, 30.0), (0.0, 0.0, 8.0, 12.0)
    drawn = [whole(inscribed_ellipse(box, WIDTH, HEIGHT)) for box in (outside, inside)]
    assert (drawn[0] == drawn[1]).all()


def test_an_ellipse_covers_about_pi_quarters_of_its_box():
    box = (0.0, 0.0, 600.0, 400.0)
    share = inscribed_ellipse(box, 600, 400).pixels.sum() / filled_box(box, 600, 400).pixels.sum()
    assert share == pytest.approx(np.pi / 4, abs=1e-3)


@pytest.mark.parametrize("box", [(3.0, 3.0, 3.0, 9.0), (30.0, 3.0, 40.0, 9.0), (3.6, 3.0, 4.4, 9.0)], ids=str)
@pytest.mark.parametrize("draw", [filled_box, inscribed_ellipse])
def test_a_box_without_a_pixel_centre_has_no_pixel(draw, box):
    assert not whole(draw(box, WIDTH, HEIGHT)).any()
