"""Pictures of labels: boxes and masks where they are, names that can be read, nothing that cannot be drawn."""

from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from tasks.domain.annotations import Annotation
from tasks.domain.errors import ImageError
from tasks.domain.masks import DrawnLabel, Mask
from tasks.formats.rle import encode_patch
from tasks.pictures import (
    LONGEST_SIDE,
    SHORTEST_SIDE,
    TINT,
    colour_of,
    draw_annotations,
    encode_picture,
    picture_name,
)

GREY = np.full((600, 800, 3), 128, dtype=np.uint8)


def label(phrase="person", box=(300.0, 200.0, 500.0, 400.0), score=0.87):
    return Annotation(phrase, box, score, 0, 0.5, ())


def masked(phrase, patch, left=0, top=0, *, score=None, box=(0.0, 0.0, 60.0, 60.0), pixels=GREY):
    """A label whose mask is the patch at (left, top) of the image; its box, and so its name, lie elsewhere."""
    height, width = pixels.shape[:2]
    patch = np.asarray(patch, dtype=np.bool_)
    counts = encode_patch(patch, left, top, height, width)
    return DrawnLabel(phrase, box, score, Mask(height, width, counts, int(patch.sum()), 1.0))


def disc(diameter):
    places = np.arange(diameter) + 0.5 - diameter / 2
    return np.hypot(places[:, None], places) < diameter / 2


def tinted(phrase, grey=128):
    return np.rint(grey * (1 - TINT) + np.array(colour_of(phrase)) * TINT)


def drawn(pixels, *labels):
    return np.asarray(draw_annotations(pixels, labels))


def coloured_area(picture, phrase):
    """The extent (left, top, right, bottom) of the pixels in the colour of a phrase, half-open."""
    rows, columns = np.nonzero((picture == colour_of(phrase)).all(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def changed(picture, pixels=GREY):
    return (picture != pixels).any(axis=2)


def test_a_picture_without_labels_is_the_image():
    np.testing.assert_array_equal(drawn(GREY), GREY)


def test_the_outline_lies_on_the_edges_of_the_box():
    left, _, right, bottom = coloured_area(drawn(GREY, label()), "person")
    assert (left, right, bottom) == (300, 500, 400)


def test_what_is_inside_the_box_stays_in_sight():
    assert not changed(drawn(GREY, label()))[210:390, 310:490].any()


def test_the_name_stands_above_the_box_where_there_is_room():
    _, top, _, _ = coloured_area(drawn(GREY, label()), "person")
    assert 170 <= top <= 190


@pytest.mark.parametrize("box", [(0.0, 0.0, 800.0, 600.0), (0.0, 0.0, 10.0, 10.0), (790.0, 590.0, 800.0, 600.0)])
def test_the_name_is_in_the_picture_wherever_the_box_is(box):
    alone = changed(drawn(GREY, label("a person in red", box))).sum()
    in_the_middle = label(
        "a person in red", tuple(c + s for c, s in zip((300, 300, 300, 300), (0, 0, 10, 10), strict=True))
    )
    assert alone >= changed(drawn(GREY, in_the_middle)).sum() * 0.9


def test_names_of_neighbours_do_not_cover_each_other():
    pair = [label("person", (300.0, 300.0, 330.0, 340.0)), label("car", (310.0, 300.0, 340.0, 340.0))]
    separate = [(drawn(GREY, one) == colour_of(one.phrase)).all(axis=2).sum() for one in pair]
    together = drawn(GREY, *pair)
    for one, alone in zip(pair, separate, strict=True):
        # The outlines of the two boxes cross, their names do not.
        assert (together == colour_of(one.phrase)).all(axis=2).sum() > 0.85 * alone


def test_a_small_image_is_enlarged_by_a_whole_number():
    assert drawn(np.zeros((160, 200, 3), np.uint8), label(box=(10.0, 10.0, 50.0, 50.0))).shape == (480, 600, 3)


def test_boxes_of_an_enlarged_image_are_enlarged_with_it():
    picture = drawn(np.zeros((160, 200, 3), np.uint8), label(box=(60.0, 60.0, 100.0, 100.0)))
    left, _, right, bottom = coloured_area(picture, "person")
    assert (left, right, bottom) == (180, 300, 300)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (40, 900), (399, 400)])
def test_an_image_of_any_shape_can_be_drawn(shape):
    height, width, _ = drawn(np.zeros((*shape, 3), np.uint8), label(box=(0.0, 0.0, 1.0, 1.0))).shape
    assert min(height, width) >= SHORTEST_SIDE or max(height, width) <= max(LONGEST_SIDE, *shape)


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_phrase_can_be_drawn(phrase):
    assert changed(drawn(GREY, label(phrase))).any()


@pytest.mark.parametrize("phrase", ["人 自転車", "عربة حمراء", "🚗", "caf\udce9", "two\nlines", "a" * 500])
def test_d28_a_name_that_the_font_does_not_hold_ends_no_run(phrase):
    assert changed(drawn(GREY, label(phrase))).any()


def test_a_long_phrase_leaves_room_for_the_picture():
    left, _, right, _ = coloured_area(
        drawn(GREY, label("the man in the red shirt " * 10)), "the man in the red shirt " * 10
    )
    assert right - left <= 0.55 * 800


def test_the_order_of_labels_does_not_change_the_picture():
    labels = [label("person", (10.0 * i, 20.0, 10.0 * i + 100, 90.0), score=0.5) for i in range(8)]
    np.testing.assert_array_equal(drawn(GREY, *labels), drawn(GREY, *labels[::-1]))


def test_names_are_readable_on_their_colour():
    def luminance(colour):
        parts = [(c / 255 / 12.92) if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return np.dot([0.2126, 0.7152, 0.0722], parts)

    for phrase in map(str, range(200)):
        picture = drawn(GREY, label(phrase))
        light = luminance(colour_of(phrase))
        text = 0.0 if (picture == 0).all(axis=2).any() else 1.0
        contrast = (max(light, text) + 0.05) / (min(light, text) + 0.05)
        assert contrast >= 4.5  # WCAG 2.2, success criterion 1.4.3


def test_a_phrase_has_the_same_colour_in_every_picture_and_another_than_most():
    assert colour_of("person") == colour_of("person")
    assert len({colour_of(str(i)) for i in range(200)}) > 40


def test_a_hundred_labels_are_drawn_as_the_same_bytes_twice():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 500, size=(100, 2))
    labels = [
        label(f"thing {i % 7}", (x, y, x + 80.0, y + 60.0), score=i / 100) for i, (x, y) in enumerate(corners.tolist())
    ]
    one, two = (encode_picture(draw_annotations(GREY, labels), "a.png") for _ in range(2))
    assert one == two


@settings(max_examples=25)
@given(st.tuples(*[st.integers(1, 40)] * 2), st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 0.9]))
def test_the_pixels_of_a_mask_change_and_no_others(shape, seed, share):
    patch = np.random.default_rng(seed).random(shape) < share
    patch[0, 0] = True
    elsewhere = np.zeros(GREY.shape[:2], dtype=np.bool_)
    elsewhere[400 : 400 + shape[0], 300 : 300 + shape[1]] = patch
    picture = drawn(GREY, masked("person", patch, 300, 400))
    np.testing.assert_array_equal(changed(picture)[200:], elsewhere[200:])  # the name is above


def test_the_inside_of_a_mask_is_seen_through_its_colour():
    light = np.full_like(GREY, 200)
    light[:, ::2] = 128
    picture = drawn(light, masked("person", disc(200), 300, 300))
    np.testing.assert_allclose(picture[400, 390:410:2], np.tile(tinted("person"), (10, 1)), atol=1)
    np.testing.assert_allclose(picture[400, 391:410:2], np.tile(tinted("person", 200), (10, 1)), atol=1)


def test_a_mask_takes_the_place_of_the_box_around_it():
    box = (300.0, 300.0, 500.0, 500.0)
    with_mask = drawn(GREY, masked("person", disc(200), 300, 300, box=box))
    assert not changed(with_mask)[480:500, 300:320].any()  # a corner of the box, outside of the disc
    assert changed(drawn(GREY, DrawnLabel("person", box)))[480:500, 300:320].any()


def test_a_label_without_a_mask_keeps_its_box_beside_one_with_a_mask():
    picture = drawn(GREY, masked("car", disc(100), 600, 100, score=0.9), label(box=(300.0, 300.0, 500.0, 500.0)))
    left, _, right, bottom = coloured_area(picture, "person")
    assert (left, right, bottom) == (300, 500, 500)


def test_two_of_a_kind_that_touch_have_a_line_between_them():
    square = np.ones((100, 100))
    picture = drawn(GREY, masked("person", square, 300, 300), masked("person", square, 400, 300))
    across = (picture[350, 300:500] == colour_of("person")).all(axis=1)
    edges = np.flatnonzero(np.diff(across.astype(int))) + 1
    assert len(edges) == 4  # outline, inside, both outlines, inside, outline
    assert edges[1] < 100 < edges[2]


def test_the_outline_of_a_mask_is_as_wide_on_all_sides():
    picture = drawn(GREY, masked("person", np.ones((120, 120)), 300, 300))[300:420, 300:420]
    outline = (picture == colour_of("person")).all(axis=2)
    expected = np.ones((120, 120), dtype=np.bool_)
    expected[3:-3, 3:-3] = False  # 0.004 of the side of a square of 800 x 600 pixels
    np.testing.assert_array_equal(outline, expected)


def test_the_outline_of_a_small_mask_leaves_its_inside_in_sight():
    picture = drawn(GREY, masked("person", disc(14), 300, 300))
    inside = picture[305:309, 305:309]
    np.testing.assert_allclose(inside, np.broadcast_to(tinted("person"), inside.shape), atol=1)


def test_the_mask_with_the_higher_score_lies_on_top():
    under, over = masked("car", disc(100), 300, 300, score=0.3), masked("person", disc(100), 330, 300, score=0.8)
    picture = drawn(GREY, under, over)
    np.testing.assert_array_equal(picture, drawn(GREY, over, under))
    assert (picture[350, 330] == colour_of("person")).all()  # the upper outline where both masks are
    assert not (picture[350, 399] == colour_of("car")).all()  # the lower one is seen through a tint


def test_masks_of_an_enlarged_image_are_enlarged_with_it():
    small = np.full((160, 200, 3), 128, np.uint8)
    ours = masked("person", np.ones((40, 30)), 60, 100, box=(0.0, 0.0, 20.0, 20.0), pixels=small)
    rows, columns = np.nonzero(changed(drawn(small, ours), np.full((480, 600, 3), 128, np.uint8))[200:])
    assert (columns.min(), columns.max() + 1, rows.min() + 200, rows.max() + 201) == (180, 270, 300, 420)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (40, 900)])
def test_a_mask_may_cover_an_image_of_any_shape(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    ours = masked("person", np.ones(shape), box=(0.0, 0.0, 1.0, 1.0), pixels=pixels)
    assert drawn(pixels, ours)[-1, -1].any()


def test_a_label_without_a_score_shows_its_phrase_alone():
    box = (300.0, 200.0, 500.0, 400.0)
    widths = []
    for score in (None, 0.87):
        above = (drawn(GREY, DrawnLabel("person", box, score))[:195] == colour_of("person")).all(axis=2)
        widths.append(np.ptp(np.flatnonzero(above.any(axis=0))))
    assert widths[0] < 0.75 * widths[1]


def test_labels_without_masks_are_drawn_as_annotations_are():
    labels = [label(), label("car", (100.0, 100.0, 180.0, 300.0), 0.4)]
    np.testing.assert_array_equal(
        drawn(GREY, *labels), drawn(GREY, *(DrawnLabel(one.phrase, one.box, one.score) for one in labels))
    )


CROWD = [(x, y, x + 16.0, y + 16.0) for x in range(100, 700, 20) for y in range(100, 500, 20)]


def crowd_of_masks():
    return [masked("cell", disc(16), int(x), int(y), score=0.5, box=(x, y, *rest)) for x, y, *rest in CROWD]


def untouched(picture):
    """The share of pixels between the members of the crowd, of about 0.5, that no name hides."""
    return (picture[100:500, 100:700] == 128).all(axis=2).mean()


def test_names_of_a_crowd_leave_its_masks_in_sight():
    assert untouched(drawn(GREY, *crowd_of_masks())) > 0.35


def test_every_box_of_a_crowd_without_masks_has_its_name():
    assert untouched(drawn(GREY, *(label("cell", box) for box in CROWD))) < 0.05


def test_every_phrase_in_a_crowd_has_its_name_once():
    stranger = masked("person", disc(16), 400, 300, score=0.1, box=(400.0, 300.0, 416.0, 316.0))
    left, _, right, _ = coloured_area(drawn(GREY, *crowd_of_masks(), stranger), "person")
    assert right - left > 40


def test_formats_other_than_jpeg_png_and_webp_become_png():
    assert [picture_name(key) for key in ("a/b.JPG", "a.png", "a.TIF", "a.jpg.gif")] == [
        "a/b.JPG",
        "a.png",
        "a.TIF.png",
        "a.jpg.gif.png",
    ]


def test_a_picture_name_is_never_longer_than_a_file_name_may_be():
    key = f"sub/{'n' * 250}.tiff"
    name = picture_name(key)
    assert len(PurePosixPath(name).name) <= 255
    assert name.startswith("sub/nnn")
    assert name.endswith(".png")


def test_a_picture_that_its_format_cannot_hold_is_an_image_error():
    with pytest.raises(ImageError, match="17000 x 8"):
        encode_picture(PillowImage.new("RGB", (17_000, 8)), "strip.webp")
