"""What Segment Anything sees of an image and its boxes, and what its logits mean for the image; no network needed."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate as interpolate_all
from transformers import SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from tasks.domain.errors import CheckpointError
from tasks.models.regions import Region, interpolate, region_of
from tasks.models.sam_inputs import SamInputs, read_sam_inputs
from tasks.models.sam_masks import logits_in, mask_of

SIDE = 64
BOXES = np.random.default_rng(1).uniform(0, 40, (7, 4)) + np.array([0, 0, 60, 45])


def processor() -> SamProcessor:
    square = {"height": SIDE, "width": SIDE}
    return SamProcessor(SamImageProcessorPil(size={"longest_edge": SIDE}, pad_size=square))


@pytest.mark.parametrize("shape", [(90, 120), (120, 90), (64, 64), (30, 20), (7, 200), (301, 199)])
def test_sam_1_sees_what_the_processor_of_transformers_makes_of_the_image(shape):
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = processor()(images=image, input_boxes=[BOXES.tolist()], return_tensors="np")
    ours = SamInputs(SIDE, pads=True)
    np.testing.assert_array_equal(ours.prepare(image), theirs["pixel_values"][0])
    np.testing.assert_allclose(ours.place(BOXES, *shape), theirs["input_boxes"][0], rtol=1e-7)


def test_sam_2_sees_the_image_stretched_to_the_square_and_normalised():
    image = np.full((40, 80, 3), (255, 0, 128), dtype=np.uint8)
    image[:, 40:] = 10
    pixels = interpolate_all(
        torch.from_numpy(image).permute(2, 0, 1)[None] / 255, (128, 128), mode="bilinear", antialias=True
    )
    mean, std = np.array([0.485, 0.456, 0.406])[:, None, None], np.array([0.229, 0.224, 0.225])[:, None, None]
    np.testing.assert_allclose(
        SamInputs(128, pads=False).prepare(image), (pixels[0].numpy() - mean) / std, atol=0.51 / 255 / 0.224
    )


@pytest.mark.parametrize("pads", [True, False])
def test_mean_and_deviation_are_those_of_the_checkpoint(tmp_path, pads):
    content = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 1.0, 0.5], "do_pad": True if pads else None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert read_sam_inputs(tmp_path, side=64, pads=pads) == SamInputs(64, pads, (0.1, 0.2, 0.3), (1.0, 1.0, 0.5))


def test_what_the_processor_of_transformers_saves_is_understood(tmp_path):
    processor().save_pretrained(tmp_path)
    assert read_sam_inputs(tmp_path, side=SIDE, pads=True) == SamInputs(SIDE, pads=True)


@pytest.mark.parametrize(
    ("pads", "content"),
    [
        (True, {"size": {"longest_edge": 512}}),
        (True, {"do_pad": False}),
        (True, {"pad_size": {"height": 64, "width": 32}}),
        (False, {"size": {"height": 32, "width": 64}}),
        (False, {"do_pad": True}),
        (False, {"resample": 3}),
    ],
)
def test_another_preprocessing_is_refused(tmp_path, pads, content):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{next(iter(content))} is .* expected .*; mend the file"):
        read_sam_inputs(tmp_path, side=64, pads=pads)


@given(
    st.tuples(*[st.integers(1, 12)] * 2),
    st.tuples(*[st.integers(1, 40)] * 2),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_part_of_the_interpolation_is_that_part_of_the_whole(shape, size, cuts):
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    top, bottom = sorted(int(cut * size[0]) for cut in cuts[:2])
    left, right = sorted(int(cut * size[1]) for cut in cuts[2:])
    whole = interpolate_all(torch.from_numpy(values).double()[None, None], size, mode="bilinear")
    ours = interpolate(values, *size, Region(left, top, right, bottom))
    np.testing.assert_allclose(ours, whole[0, 0, top:bottom, left:right], atol=1e-5)


def test_one_of_many_masks_of_a_large_photo_takes_no_memory_for_the_whole_of_it():
    answer = np.random.default_rng(4).normal(size=(256, 256)).astype(np.float32)
    tracemalloc.start()
    logits = logits_in(Region(100, 100, 400, 300), answer, SamInputs(1024, pads=True), 4000, 6000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert logits.shape == (200, 300)
    assert peak < 20e6  # the whole has 96 MB of logits


def test_the_pixels_of_a_box_are_those_whose_area_it_touches():
    assert region_of((1.2, 3.0, 4.0, 5.7)) == Region(1, 3, 4, 6)


def test_a_box_without_a_logit_above_zero_has_no_mask():
    assert mask_of(np.zeros((2, 3), np.float32), Region(0, 0, 3, 2), 4, 5) is None


def test_quality_is_the_overlap_of_a_stricter_and_a_laxer_mask():
    logits = np.array([[2.0, 0.5, 0.1], [-0.5, -2.0, 3.0]], np.float32)
    mask = mask_of(logits, Region(1, 2, 4, 4), 6, 5)
    assert mask is not None
    assert (mask.area, mask.quality) == (4, 2 / 5)
