import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from tasks.domain.errors import CheckpointError
from tasks.domain.prompts import Caption
from tasks.models.postprocessing import Answer, candidates_of, phrase_scores
from tasks.models.preprocessing import Preprocessing, Pyramid, grown_until_workable, read_preprocessing

SWIN = Pyramid((8, 16, 32), 1, pads=True)
CONVNEXT = Pyramid((8, 16), 1, pads=False)
sides = st.integers(1, 3000)


@settings(deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(16, 64), st.integers(64, 120), st.integers(0, 2**32 - 1))
def test_pixels_are_bit_for_bit_those_of_transformers(height, width, shortest, longest, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    edges = {"shortest_edge": shortest, "longest_edge": longest}
    theirs = GroundingDinoImageProcessorPil(size=edges)(image, input_data_format="channels_last", return_tensors="np")
    preprocessing = Preprocessing(**edges)
    ours = preprocessing.prepare(image, preprocessing.resized(height, width))
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs["pixel_values"][0])
    assert theirs["pixel_mask"].all()


@given(sides, sides)
def test_sizes_are_those_of_transformers_and_never_under_a_pixel(height, width):
    theirs = get_size_with_aspect_ratio((height, width), 800, 1333)
    assert Preprocessing().resized(height, width) == (max(1, theirs[0]), max(1, theirs[1]))


@given(sides, sides, st.sampled_from([1, 20, 900]), st.sampled_from([SWIN, CONVNEXT]))
def test_a_size_grows_only_if_it_must_and_no_further_than_it_must(height, width, queries, pyramid):
    size = Preprocessing().resized(height, width)
    grown = grown_until_workable(size, queries, pyramid)
    assert pyramid.is_workable(grown, queries)
    if pyramid.is_workable(size, queries):
        assert grown == size
    else:
        longer = max(grown) - 1
        smaller = (max(1, longer * size[0] // max(size)), max(1, longer * size[1] // max(size)))
        assert not pyramid.is_workable(smaller, queries)


def test_a_grown_strip_keeps_its_shape():
    assert Preprocessing().resized(20, 12000) == (2, 1333)
    height, width = grown_until_workable((2, 1333), 900, SWIN)
    assert width / height == pytest.approx(1333 / 2, rel=0.2)


def test_convnext_leaves_out_what_is_short_of_a_patch_and_swin_fills_it_up():
    assert (CONVNEXT.positions(47), SWIN.positions(47)) == ([5, 2, 1], [6, 3, 2, 1])


def test_what_the_checkpoint_says_is_read_from_either_file(tmp_path):
    assert read_preprocessing(tmp_path) == Preprocessing()
    processor = GroundingDinoImageProcessorPil(
        size={"shortest_edge": 160, "longest_edge": 208}, image_mean=[0.5, 0.5, 0.5], image_std=[0.1, 0.2, 0.3]
    )
    processor.save_pretrained(tmp_path)
    expected = Preprocessing(160, 208, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert read_preprocessing(tmp_path) == expected
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": content}))
    assert read_preprocessing(tmp_path) == expected


def test_a_preprocessing_of_another_kind_is_refused_with_all_its_differences(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": False, "resample": 3, "size": {"height": 640, "width": 640}})
    )
    with pytest.raises(CheckpointError, match=r"do_normalize is False.*resample is 3.*size is \{'height': 640"):
        read_preprocessing(tmp_path)


# Postprocessing


@st.composite
def token_scores_and_spans(draw):
    tokens = draw(st.integers(3, 12))
    spans = draw(
        st.lists(
            st.tuples(st.integers(0, tokens - 2), st.integers(1, tokens - 1)).filter(lambda span: span[0] < span[1]),
            min_size=1,
            max_size=5,
        )
    )
    scores = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((draw(st.integers(1, 4)), tokens))
    return scores, spans


@given(token_scores_and_spans())
def test_a_phrase_scores_the_mean_or_max_of_its_own_tokens(case):
    scores, spans = case
    for rule, oracle in (("mean", np.mean), ("max", np.max)):
        expected = np.stack([oracle(scores[:, start:end], axis=1) for start, end in spans], axis=1)
        np.testing.assert_allclose(phrase_scores(scores, spans, rule), expected, rtol=1e-12)


def answer(scores: list[list[float]], boxes: list[list[float]], spans: tuple[tuple[int, int], ...]) -> Answer:
    caption = Caption(tuple(range(len(spans))), (0,) * len(scores[0]), spans)
    return Answer(caption, np.array(scores), np.array(boxes))


def test_a_query_may_answer_to_several_phrases_and_ties_break_by_phrase_and_box():
    found = candidates_of(
        ["a", "b"],
        [answer([[0, 0.5, 0.5, 0]] * 2, [[0.5, 0.5, 0.4, 0.4], [0.3, 0.5, 0.4, 0.4]], ((1, 2), (2, 3)))],
        height=100,
        width=200,
        keep_floor=0.5,
        rule="mean",
    )
    assert found.phrases.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(found.boxes[:2], [[20, 30, 100, 70], [60, 30, 140, 70]])


def test_boxes_are_clipped_and_degenerate_ones_counted():
    boxes = [[0.0, 0.0, 0.5, 0.5], [1.2, 0.5, 0.2, 0.2], [0.5, 0.5, 0.001, 0.5], [np.nan, 0.5, 0.5, 0.5]]
    found = candidates_of(
        ["a"], [answer([[0, 0.9, 0]] * 4, boxes, ((1, 2),))], height=100, width=200, keep_floor=0.1, rule="mean"
    )
    assert found.boxes.tolist() == [[0, 0, 50, 25]]
    assert found.degenerate == 3


def test_a_hundred_thousand_candidates_are_all_kept():
    rng = np.random.default_rng(0)
    spans = tuple((2 * number + 1, 2 * number + 2) for number in range(112))
    big = answer(rng.random((900, 226)).tolist(), (rng.random((900, 4)) / 2 + 0.2).tolist(), spans)
    found = candidates_of([str(n) for n in range(112)], [big], height=480, width=640, keep_floor=0.0, rule="mean")
    assert len(found.scores) == 900 * 112
