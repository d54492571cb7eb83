"""Matching labels with the truth, checked against pycocotools' own matching."""

import contextlib
import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.domain.matching import Counts, count_matches

# Whole pixels in a small square, so that boxes overlap, touch and coincide often.
sides = st.tuples(st.integers(0, 12), st.integers(1, 10))
boxes = st.lists(
    st.tuples(sides, sides).map(lambda s: (s[0][0], s[1][0], s[0][0] + s[0][1], s[1][0] + s[1][1])), max_size=6
)


def array(rows):
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def matches(labels, scores, truth, crowd=None):
    crowd = np.zeros(len(truth), dtype=bool) if crowd is None else np.array(crowd, dtype=bool)
    return count_matches(array(labels), np.array(scores, dtype=np.float64), array(truth), crowd)


def counted_by_pycocotools(labels, scores, truth, crowd):
    """The counts at an IoU of 0.5, from the per-image matches that COCOeval keeps."""

    def coco(rows):
        made = COCO()
        made.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": rows}
        made.createIndex()
        return made

    def row(i, box):
        left, top, right, bottom = map(float, box)
        area = (right - left) * (bottom - top)
        bbox = [left, top, right - left, bottom - top]
        return {"id": i, "image_id": 1, "category_id": 1, "bbox": bbox, "area": area, "iscrowd": 0}

    truths = [row(i, box) | {"iscrowd": int(c)} for i, (box, c) in enumerate(zip(truth, crowd, strict=True), 1)]
    found = [row(i, box) | {"score": s} for i, (box, s) in enumerate(zip(labels, scores, strict=True), 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco(truths), coco(found), "bbox")
        evaluation.evaluate()
    image = evaluation.evalImgs[0]
    if image is None:
        return Counts()
    counted = ~np.array(image["dtIgnore"][0], dtype=bool)
    matched = np.array(image["dtMatches"][0]) > 0
    positives = int((counted & matched).sum())
    objects = int((np.array(image["gtIgnore"]) == 0).sum())
    return Counts(positives, int((counted & ~matched).sum()), objects - positives)


@given(boxes, boxes, st.data())
def test_labels_are_matched_as_pycocotools_matches_them(labels, truth, data):
    scores = data.draw(st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=len(labels), max_size=len(labels)))
    crowd = data.draw(st.lists(st.booleans(), min_size=len(truth), max_size=len(truth)))
    assert matches(labels, scores, truth, crowd) == counted_by_pycocotools(labels, scores, truth, crowd)


def test_between_two_objects_that_it_overlaps_alike_a_label_takes_the_one_that_pycocotools_takes():
    between, on_the_first = (2, 0, 12, 10), (0, 0, 10, 10)
    case = ([between, on_the_first], [0.9, 0.8], [(0, 0, 10, 10), (4, 0, 14, 10)])
    assert matches(*case) == counted_by_pycocotools(*case, crowd=[False, False]) == Counts(true_positives=2)


@given(boxes, boxes, st.randoms())
def test_the_order_of_labels_with_different_scores_does_not_matter(labels, truth, random):
    pairs = [(box, i / 10) for i, box in enumerate(labels)]
    shuffled = random.sample(pairs, len(pairs))
    assert matches(*columns(pairs), truth) == matches(*columns(shuffled), truth)


def columns(pairs):
    return [box for box, _ in pairs], [score for _, score in pairs]


@given(boxes)
def test_labels_that_are_the_truth_are_all_right(truth):
    assert matches(truth, [0.5] * len(truth), truth) == Counts(true_positives=len(truth))


def test_the_second_label_of_one_object_is_a_false_positive():
    assert matches([(0, 0, 10, 10)] * 2, [0.9, 0.8], [(0, 0, 10, 10)]) == Counts(true_positives=1, false_positives=1)


def test_an_overlap_of_exactly_the_bar_is_a_match():
    assert matches([(0, 0, 10, 5)], [0.9], [(0, 0, 10, 10)]) == Counts(true_positives=1)


def test_a_label_in_a_crowd_counts_neither_way():
    assert matches([(1, 1, 2, 2)], [0.9], [(0, 0, 50, 50)], crowd=[True]) == Counts()


def test_a_label_of_which_exactly_half_lies_in_a_crowd_is_in_it():
    case = ([(0, 0, 2, 1)], [0.9], [(0, 0, 1, 5)], [True])
    assert matches(*case) == counted_by_pycocotools(*case) == Counts()


def test_precision_recall_and_f1_follow_from_the_counts():
    counts = Counts(true_positives=6, false_positives=2, false_negatives=4)
    assert (counts.precision, counts.recall, counts.f1) == (0.75, 0.6, 2 / 3)


def test_rates_of_nothing_are_unknown_and_not_zero():
    assert (Counts().precision, Counts().recall, Counts().f1) == (None, None, None)


def test_without_labels_recall_is_zero_and_precision_unknown():
    counts = matches([], [], [(0, 0, 10, 10)])
    assert (counts.precision, counts.recall, counts.f1) == (None, 0.0, 0.0)
