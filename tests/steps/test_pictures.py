"""Pictures of labels: boxes where they are, names that can be read, nothing that cannot be drawn."""

from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from tasks.domain.annotations import Annotation
from tasks.domain.errors import ImageError
from tasks.pictures import LONGEST_SIDE, SHORTEST_SIDE, colour_of, draw_annotations, encode_picture, picture_name

GREY = np.full((600, 800, 3), 128, dtype=np.uint8)


def label(phrase="person", box=(300.0, 200.0, 500.0, 400.0), score=0.87):
    return Annotation(phrase, box, score, 0, 0.5, ())


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
