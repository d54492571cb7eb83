import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import PromptError
from tasks.models import DetectorConfig, load_detector, load_prompter
from tasks.models.fake import FakeDetector, paint

FAKE = FakeDetector()


def picture(*objects: tuple[str, float, tuple[int, int, int, int]], size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """A grey (H, W, 3) image with (phrase, score, box) painted in."""
    image = np.full((*size, 3), 128, np.uint8)
    for phrase, score, (left, top, right, bottom) in objects:
        image[top:bottom, left:right] = paint(phrase, score)
    return image


def test_painted_labels_are_found_with_their_boxes_and_scores_best_first():
    image = picture(("cat", 0.4, (0, 0, 10, 20)), ("dog", 0.8, (30, 5, 80, 60)), ("cat", 0.6, (11, 0, 20, 20)))
    (found,) = FAKE.detect([image], [["cat", "dog"]], keep_floor=0.1)
    assert found.asked == ("cat", "dog")
    assert found.phrases.tolist() == [1, 0, 0]
    assert found.boxes.tolist() == [[30, 5, 80, 60], [11, 0, 20, 20], [0, 0, 10, 20]]
    assert found.scores == pytest.approx([0.8, 0.6, 0.4], abs=1 / 510)
    assert (found.boxes.dtype, found.scores.dtype, found.phrases.dtype) == (np.float64, np.float64, np.int64)


def test_what_is_not_asked_is_not_found():
    (found,) = FAKE.detect([picture(("cat", 0.4, (0, 0, 10, 20)))], [["dog"]], keep_floor=0.0)
    assert found.scores.size == 0


def test_a_score_at_the_keep_floor_is_kept_and_one_below_is_not():
    image = picture(("cat", 0.4, (0, 0, 10, 20)), ("cat", 0.2, (20, 0, 30, 20)))
    (found,) = FAKE.detect([image], [["cat"]], keep_floor=0.4)
    assert found.boxes.tolist() == [[0, 0, 10, 20]]


def test_an_empty_prompt_finds_nothing():
    (found,) = FAKE.detect([picture(("cat", 0.4, (0, 0, 10, 20)))], [[]], keep_floor=0.0)
    assert (found.asked, found.boxes.shape, found.phrases.shape) == ((), (0, 4), (0,))


def test_phrases_that_differ_in_case_are_both_answered():
    (found,) = FAKE.detect([picture(("Cat", 0.4, (0, 0, 10, 20)))], [["cat", "CAT "]], keep_floor=0.0)
    assert found.phrases.tolist() == [0, 1]


@given(st.text(min_size=1), st.integers(0, 255))
def test_no_label_is_grey_and_the_score_survives(phrase, level):
    red, green, blue = paint(phrase, level / 255)
    assert red != green
    assert blue == level


def test_captions_of_many_words_are_split_and_unaskable_phrases_refused():
    names = [f"class number {number}" for number in range(300)]
    captions = FAKE.captions(names)
    assert len(captions) == 5  # 4 tokens each with the full stop: 63 of them in the 254 that a caption has room for
    assert sorted(index for caption in captions for index in caption.phrases) == list(range(300))
    with pytest.raises(PromptError, match="1 of 2 phrases"):
        FAKE.detect([picture()], [["cat", " . "]], keep_floor=0.0)


def test_fake_is_loaded_by_name_and_needs_no_deep_learning_framework():
    program = (
        "import sys; from tasks.models import DetectorConfig, load_detector, load_prompter\n"
        "detector = load_detector(DetectorConfig('fake')); assert len(detector.captions(['cat'])) == 1\n"
        "assert load_prompter(DetectorConfig('fake')).digest == detector.digest\n"
        "print(sorted({'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_process_loads_a_detector_once_and_its_prompter_has_the_same_digest():
    detector = load_detector(DetectorConfig("fake"))
    assert load_detector(DetectorConfig("fake")) is detector
    assert load_prompter(DetectorConfig("fake")).digest == detector.digest
    assert len(detector.digest) == 64
