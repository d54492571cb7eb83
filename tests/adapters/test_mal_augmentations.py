"""How crops are varied: how often, within which bounds, and the same for the same seed."""

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.models.mal.augmentations import distort, jitter, mirror, turn_hue

CROP = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
MASK = np.triu(np.ones((24, 24), dtype=np.uint8))


@given(st.integers(0, 2**32 - 1))
def test_a_crop_and_its_mask_are_mirrored_together_or_not_at_all(seed: int) -> None:
    crop, mask = mirror(CROP, MASK, np.random.default_rng(seed))
    same = np.array_equal(crop, CROP) and np.array_equal(mask, MASK)
    mirrored = np.array_equal(crop, CROP[:, ::-1]) and np.array_equal(mask, MASK[:, ::-1])
    assert same != mirrored


@given(st.integers(0, 2**32 - 1))
def test_the_same_seed_gives_the_same_view(seed: int) -> None:
    first, second = (distort(CROP, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(first, second)
    assert (first.shape, first.dtype) == (CROP.shape, np.uint8)


def test_a_crop_is_left_alone_as_often_as_the_recipe_says() -> None:
    rng = np.random.default_rng(1)
    alone = np.mean([np.array_equal(distort(CROP, rng), CROP) for _ in range(2000)])
    assert alone == pytest.approx(0.5 * 0.8 * 0.5, abs=0.03)  # neither jittered, nor grey, nor blurred


def test_a_view_is_grey_as_often_as_the_recipe_says() -> None:
    rng = np.random.default_rng(2)
    grey = np.mean([not np.ptp(distort(CROP, rng).astype(int), axis=2).any() for _ in range(2000)])
    assert grey == pytest.approx(0.2, abs=0.03)


@given(st.integers(0, 2**32 - 1))
def test_jitter_keeps_grey_grey(seed: int) -> None:
    grey = Image.fromarray(np.full((4, 4, 3), 120, np.uint8))
    jittered = np.asarray(jitter(grey, np.random.default_rng(seed))).astype(int)
    assert np.ptp(jittered, axis=2).max() == 0


def test_jitter_stays_within_its_bounds_of_brightness() -> None:
    grey = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))
    levels = [np.asarray(jitter(grey, np.random.default_rng(seed)))[0, 0, 0] for seed in range(300)]
    assert 59 <= min(levels) < 65  # contrast has nothing to spread in one colour
    assert 135 < max(levels) <= 141


@pytest.mark.parametrize("turn", [-0.1, 0.05, 0.1])
@pytest.mark.parametrize("colour", [(200, 40, 40), (40, 200, 90), (30, 60, 220)])
def test_the_hue_turns_as_colorsys_says(colour: tuple[int, int, int], turn: float) -> None:
    found = np.asarray(turn_hue(Image.new("RGB", (1, 1), colour), turn))[0, 0] / 255
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    assert found == pytest.approx(expected, abs=0.03)  # Pillow keeps 256 hues
