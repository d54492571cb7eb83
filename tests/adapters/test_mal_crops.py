"""The crops around boxes: windows, pixels from the opposite side, the boxes' own pixels, against loops over pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.models.mal.crops import Window, crop_box, crop_image, expand, normalise

HEIGHT, WIDTH = 23, 31
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)

coordinates = st.floats(0, 1, width=32)


@st.composite
def boxes(draw) -> tuple[float, float, float, float]:
    """A box with an area inside of the image."""
    x0, x1 = sorted((draw(coordinates) * WIDTH, draw(coordinates) * WIDTH))
    y0, y1 = sorted((draw(coordinates) * HEIGHT, draw(coordinates) * HEIGHT))
    return x0, y0, max(x1, min(x0 + 0.5, WIDTH)), max(y1, min(y0 + 0.5, HEIGHT))


windows = st.builds(
    lambda left, top, width, height: Window(left, top, left + width, top + height),
    st.integers(-100, 60),
    st.integers(-100, 60),
    st.integers(1, 120),
    st.integers(1, 120),
)


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


# Windows


def test_a_window_is_the_box_with_a_share_of_its_half_sides_and_a_pixel_more_at_its_far_corner():
    assert expand((10, 20, 50, 40), (0.3, 0.3, 0.3, 0.3)) == Window(30 - 26, 30 - 13, 30 + 26 + 1, 30 + 13 + 1)


def test_every_side_has_its_own_margin():
    assert expand((0, 0, 20, 40), (0, 0.5, 1, 2)) == Window(0, 20 - 30, 10 + 20 + 1, 20 + 60 + 1)


def test_the_corners_of_a_window_are_rounded_outwards():
    assert expand((10.25, 10.25, 11.5, 11.5), (0, 0, 0, 0)) == Window(10, 10, 13, 13)


def test_a_corner_that_single_precision_takes_to_the_next_pixel_is_in_that_one():
    box = (9.999999999, 9.999999999, 12.999999999, 12.999999999)

    window = expand(box, (0, 0, 0, 0))

    assert window == Window(10, 10, 14, 14)
    assert crop_box(box, Window(9, 9, 13, 13), HEIGHT, WIDTH, 4, wrap=False)[0].tolist() == [0, 0, 0, 0]


@settings(max_examples=300)
@given(boxes(), st.tuples(*[st.floats(0, 1.2)] * 4))
def test_a_window_is_that_of_the_formula_with_corners_in_single_precision(box, margins):
    x0, y0, x1, y1 = (np.float32(value) for value in box)
    cx, cy = np.float32((x0 + x1) / np.float32(2)), np.float32((y0 + y1) / np.float32(2))

    expected = Window(
        math.floor(cx.item() - (cx - x0).item() * (1 + margins[0])),
        math.floor(cy.item() - (cy - y0).item() * (1 + margins[1])),
        math.ceil(cx.item() + (x1 - cx).item() * (1 + margins[2]) + 1),
        math.ceil(cy.item() + (y1 - cy).item() * (1 + margins[3]) + 1),
    )
    assert expand(box, margins) == expected


@given(boxes(), st.floats(0, 1.2))
def test_a_window_holds_every_pixel_that_its_box_touches(box, margin):
    window, rounding = expand(box, (margin,) * 4), 1e-4

    assert window.left <= math.floor(box[0] + rounding)
    assert window.top <= math.floor(box[1] + rounding)
    assert window.right >= math.ceil(box[2] - rounding)
    assert window.bottom >= math.ceil(box[3] - rounding)


# Pixels


def test_a_crop_inside_of_the_image_is_cut_and_resized_by_pillow():
    expected = Image.fromarray(PIXELS).crop((3, 4, 20, 15)).resize((16, 16), Image.Resampling.BICUBIC)

    np.testing.assert_array_equal(crop_image(PIXELS, Window(3, 4, 20, 15), 16), np.asarray(expected))


@settings(max_examples=50)
@given(windows)
def test_what_lies_outside_of_the_image_comes_from_the_opposite_side_however_far_it_is(window):
    pixels = np.zeros((window.height, window.width, 3), np.uint8)
    for row in range(window.height):
        for column in range(window.width):
            pixels[row, column] = PIXELS[(window.top + row) % HEIGHT, (window.left + column) % WIDTH]

    np.testing.assert_array_equal(crop_image(PIXELS, window, 16), resized(pixels, 16))


@given(windows)
def test_a_window_moved_by_the_size_of_the_image_shows_the_same(window):
    moved = Window(window.left - WIDTH, window.top + HEIGHT, window.right - WIDTH, window.bottom + HEIGHT)

    np.testing.assert_array_equal(crop_image(PIXELS, window, 8), crop_image(PIXELS, moved, 8))


# The boxes' own pixels


@settings(max_examples=50)
@given(boxes(), windows, st.booleans())
def test_the_pixels_of_a_box_are_those_of_its_mask_of_the_whole_image_cropped(box, window, wrap):
    """MAL-7: it wraps around the image as the pixels do when training, and does not when masks are made.

    The mask of the whole image has the rows and columns of the corners, and all between them.
    """
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    x0, y0, x1, y1 = (int(np.float32(value)) for value in box)
    mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    pixels = np.zeros((window.height, window.width), np.uint8)
    for row in range(window.height):
        for column in range(window.width):
            y, x = window.top + row, window.left + column
            if wrap:
                pixels[row, column] = mask[y % HEIGHT, x % WIDTH]
            elif 0 <= y < HEIGHT and 0 <= x < WIDTH:
                pixels[row, column] = mask[y, x]

    found = crop_box(box, window, HEIGHT, WIDTH, 16, wrap=wrap)

    np.testing.assert_array_equal(found, resized(pixels, 16))
    assert set(np.unique(found)) <= {0, 1}


def test_what_is_outside_of_the_image_is_never_foreground_when_masks_are_made():
    """MAL-7: the wrapped part of a crop can show the object itself."""
    box = (0.0, 0.0, float(WIDTH), float(HEIGHT))
    window = Window(-WIDTH, 0, 2 * WIDTH, HEIGHT)

    found = crop_box(box, window, HEIGHT, WIDTH, 30, wrap=False)

    assert found[:, 11:19].all()
    assert not found[:, :9].any()
    assert not found[:, 21:].any()


# What the network takes


def test_crops_are_normalised_by_imagenets_mean_and_deviation_channel_by_channel():
    crops = [np.full((4, 4, 3), (255, 0, 51), np.uint8), np.full((4, 4, 3), 255, np.uint8)]

    found = normalise(crops)

    assert found.shape == (2, 3, 4, 4)
    assert found.dtype == torch.float32
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert found[0, :, 1, 2].tolist() == pytest.approx(expected, abs=1e-6)
    assert found[1, :, 0, 0].tolist() == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225], abs=1e-6)


def test_crops_keep_their_rows_and_columns():
    crop = np.random.default_rng(1).integers(0, 256, (5, 5, 3), dtype=np.uint8)

    red = normalise([crop])[0, 0] * 0.229 + 0.485

    np.testing.assert_allclose(red.numpy() * 255, crop[..., 0], atol=1e-3)
