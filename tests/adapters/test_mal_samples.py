"""Samples: the same whoever makes them, in a seeded order, from images that are decoded once."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import ImageError
from tasks.domain.images import Image
from tasks.domain.training_boxes import LabelledBoxes
from tasks.models.mal.crops import expand
from tasks.models.mal.samples import DecodedImages, Pixels, SampleSet, in_order, random_margins

IMAGES = tuple(Image(f"{i}.png", "0" * 64, 70, 50) for i in range(3))
BOXES = LabelledBoxes(
    IMAGES,
    np.array([0, 1, 2, 0, 1]),
    np.array([[5, 5, 30, 30], [0, 0, 70, 50], [40, 10, 70, 50], [10, 20, 30, 45], [1, 1, 9, 9]], dtype=np.float64),
)


def paint(image: Image) -> Pixels:
    return np.random.default_rng(int(image.key[0])).integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)


def sample_set(seed: int = 3, boxes: LabelledBoxes = BOXES) -> SampleSet:
    return SampleSet(boxes, paint, crop_size=32, margin_rate=(0, 1.2), seed=seed)


def images(samples: SampleSet, epoch: int = 0, size: int = 2, threads: int = 0) -> list[list[float]]:
    order = samples.order(epoch, size)
    return [batch.student.flatten().tolist() for batch in samples.batches(epoch, order, size, threads)]


def test_threads_change_no_sample() -> None:
    assert images(sample_set(), threads=0) == images(sample_set(), threads=3)


def test_the_batch_changes_no_sample() -> None:
    samples = sample_set()
    alone = [batch.masks for batch in samples.batches(0, np.arange(4), 1, 0)]
    together = next(samples.batches(0, np.arange(4), 4, 0)).masks
    assert all(bool((one[0] == other).all()) for one, other in zip(alone, together, strict=True))


def test_every_epoch_has_samples_of_its_own() -> None:
    samples = sample_set()
    assert not np.array_equal(samples.sample(0, 0).teacher, samples.sample(1, 0).teacher)


@given(st.integers(0, 9), st.integers(1, 8))
def test_an_epoch_looks_at_every_box_and_fills_up_from_its_beginning(epoch: int, multiple: int) -> None:
    order = sample_set().order(epoch, multiple)
    assert sorted(order[: len(BOXES)]) == list(range(len(BOXES)))
    assert len(order) % multiple == 0
    assert order[len(BOXES) :].tolist() == np.resize(order[: len(BOXES)], len(order))[len(BOXES) :].tolist()


def test_another_seed_is_another_order() -> None:
    orders = {tuple(sample_set(seed).order(0, 1)) for seed in range(20)}
    assert len(orders) > 10


def test_the_student_sees_the_teachers_crop_distorted_and_the_box_where_it_is() -> None:
    samples = [sample_set().sample(epoch, 0) for epoch in range(30)]
    assert any(np.array_equal(sample.student, sample.teacher) for sample in samples)
    assert not all(np.array_equal(sample.student, sample.teacher) for sample in samples)
    assert all(set(np.unique(sample.mask)) == {0, 1} for sample in samples)


@given(st.integers(0, 2**32 - 1))
def test_opposite_margins_share_one_budget(seed: int) -> None:
    left, top, right, bottom = random_margins((0.0, 1.2), np.random.default_rng(seed))
    assert min(left, top, right, bottom) >= 0
    assert left + right <= 1.2
    assert top + bottom <= 1.2


@given(st.integers(0, 2**32 - 1))
def test_a_training_crop_holds_its_whole_box(seed: int) -> None:
    window = expand((5.5, 6, 30, 31.25), random_margins((0.0, 1.2), np.random.default_rng(seed)))
    assert window.left <= 5
    assert window.top <= 6
    assert window.right >= 30
    assert window.bottom >= 32


def test_an_image_that_is_kept_is_decoded_once() -> None:
    """M-6: the published code reads the image once for each box."""
    asked: list[str] = []
    pictures = DecodedImages(lambda image: asked.append(image.key) or paint(image), most_bytes=10**6)  # type: ignore[func-returns-value]
    for image in (*IMAGES, *IMAGES):
        pictures.get(image)
    assert asked == ["0.png", "1.png", "2.png"]


def test_the_image_that_was_used_longest_ago_makes_room() -> None:
    asked: list[str] = []
    pictures = DecodedImages(lambda image: asked.append(image.key) or paint(image), most_bytes=2 * 70 * 50 * 3)  # type: ignore[func-returns-value]
    for place in (0, 1, 0, 2, 0, 1):
        pictures.get(IMAGES[place])
    assert asked == ["0.png", "1.png", "2.png", "1.png"]


def test_an_image_that_cannot_be_read_any_more_is_named() -> None:
    def gone(image: Image) -> Pixels:
        raise ImageError("is not there")

    with pytest.raises(ImageError, match=r"^1\.png is not there$"):
        DecodedImages(gone, 1).get(IMAGES[1])


def test_what_is_made_ahead_comes_in_order() -> None:
    def slow_if_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return number

    assert list(in_order(slow_if_even, range(40), 4)) == list(range(40))


def test_an_error_ahead_is_raised_at_its_place_and_leaves_no_thread() -> None:
    def fail_at_20(number: int) -> int:
        if number == 20:
            raise ImageError("gone")
        return number

    before = threading.active_count()
    made = in_order(fail_at_20, range(40), 2)
    assert [next(made) for _ in range(20)] == list(range(20))
    with pytest.raises(ImageError, match="gone"):
        next(made)
    assert threading.active_count() == before
