"""Laws and foreign oracles of the aggregation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.domain.aggregation import AggregationRules, Dbscan, Nms, Wbf, aggregate, distinct
from tasks.domain.boxes import box_iou
from tasks.domain.detections import Detection

PHRASES = ("cat", "dog", "red bus")


@st.composite
def detections(draw: st.DrawFn, most: int = 12) -> list[Detection]:
    """Detections on a coarse grid, so that many overlap and some are equal."""
    corner, side = st.integers(0, 6), st.integers(2, 6)
    found = []
    for _ in range(draw(st.integers(0, most))):
        x, y, w, h = draw(corner), draw(corner), draw(side), draw(side)
        score = draw(st.integers(1, 20)) / 20
        iteration = draw(st.integers(0, 2))
        box = (float(x), float(y), float(x + w), float(y + h))
        found.append(Detection(draw(st.sampled_from(PHRASES)), box, score, iteration, 0.5 - iteration / 10))
    return found


METHODS = st.one_of(
    st.sampled_from([None, 0.3, 0.5, 0.7]).map(Nms),
    st.builds(Dbscan, st.sampled_from([0.3, 0.5]), st.integers(1, 3), st.sampled_from(["best", "mean"])),
    st.sampled_from([0.4, 0.55, 0.7]).map(Wbf),
)
RULES = st.builds(AggregationRules, METHODS, st.sampled_from([None, 0.5, 0.8]))


@given(detections(), RULES, st.randoms())
def test_the_order_of_the_detections_never_changes_the_annotations(found, rules, random):
    shuffled = random.sample(found, len(found))
    assert aggregate([], found, PHRASES, rules) == aggregate([], shuffled, PHRASES, rules)


@given(detections(), RULES)
def test_aggregating_the_same_detections_again_changes_nothing(found, rules):
    once = aggregate([], found, PHRASES, rules).annotations
    assert aggregate(once, found, PHRASES, rules).annotations == once


@given(
    detections(), detections(), RULES.filter(lambda r: not isinstance(r.method, Dbscan) or r.method.min_samples == 1)
)
def test_aggregating_in_two_iterations_gives_the_annotations_of_one(first, second, rules):
    stepwise = aggregate(aggregate([], first, PHRASES, rules).annotations, second, PHRASES, rules)
    assert stepwise.annotations == aggregate([], [*first, *second], PHRASES, rules).annotations


@given(detections(), RULES)
def test_every_detection_is_delivered_or_counted_under_a_reason(found, rules):
    result = aggregate([], found, PHRASES, rules)
    assert len(result.annotations) + result.merged + result.noise + result.cross_class == len(distinct(found))


@given(detections(), RULES)
def test_every_annotation_carries_the_earliest_iteration_of_its_own_detections(found, rules):
    for annotation in aggregate([], found, PHRASES, rules).annotations:
        own = [member for member in annotation.merged_from if member.phrase == annotation.phrase]
        assert annotation.iteration == min(member.iteration for member in own)


@given(detections(), st.sampled_from([0.3, 0.5, 0.7]))
def test_no_two_annotations_of_a_phrase_overlap_more_than_the_nms_threshold(found, iou):
    kept = aggregate([], found, PHRASES, AggregationRules(Nms(iou))).annotations
    for phrase in PHRASES:
        boxes = np.array([a.box for a in kept if a.phrase == phrase], dtype=float).reshape(-1, 4)
        overlaps = box_iou(boxes, boxes)
        np.fill_diagonal(overlaps, 0.0)
        assert not (overlaps > iou).any()


@given(detections())
def test_without_nms_every_different_box_stays(found):
    kept = aggregate([], found, PHRASES, AggregationRules(Nms(None))).annotations
    assert {(a.phrase, a.box) for a in kept} == {(d.phrase, d.box) for d in found}
    assert len(kept) == len({(d.phrase, d.box) for d in found})


@given(detections(), st.sampled_from([0.3, 0.6]))
def test_no_two_annotations_of_different_phrases_overlap_more_than_the_cross_class_threshold(found, iou):
    kept = aggregate([], found, PHRASES, AggregationRules(Nms(0.5), iou)).annotations
    for a in kept:
        for b in kept:
            if a.phrase != b.phrase:
                assert box_iou(np.array([a.box]), np.array([b.box]))[0, 0] <= iou


@given(detections(), st.sampled_from([0.3, 0.5]), st.integers(1, 3))
def test_dbscan_clusters_are_those_of_scikit_learn(found, eps, min_samples):
    from sklearn.cluster import DBSCAN

    rules = AggregationRules(Dbscan(eps, min_samples, "best"))
    result = aggregate([], found, PHRASES, rules)
    clusters, noise = 0, 0
    for phrase in PHRASES:
        members = [d for d in distinct(found) if d.phrase == phrase]
        if members:
            boxes = np.array([d.box for d in members])
            labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(
                np.clip(1 - box_iou(boxes, boxes), 0, None)
            )
            clusters += len(set(labels) - {-1})
            noise += int((labels == -1).sum())
    assert (len(result.annotations), result.noise) == (clusters, noise)


@settings(deadline=None)
@given(detections(), st.sampled_from([0.4137, 0.5519, 0.7013]))
def test_wbf_boxes_and_scores_are_those_of_ensemble_boxes(found, iou):
    weighted_boxes_fusion = pytest.importorskip("ensemble_boxes").weighted_boxes_fusion
    # The oracle breaks ties of the score by its own sorting: give every detection a score of its own.
    found = [replace(d, score=round(0.9 - i / 50, 6)) for i, d in enumerate(found)]
    kept = aggregate([], found, PHRASES, AggregationRules(Wbf(iou))).annotations
    boxes = [[value / 20 for value in d.box] for d in found]
    labels = [PHRASES.index(d.phrase) for d in found]
    want = weighted_boxes_fusion([boxes], [[d.score for d in found]], [labels], iou_thr=iou, skip_box_thr=0.0)
    expected = sorted((int(c), round(float(s), 4), *(float(v) * 20 for v in b)) for b, s, c in zip(*want, strict=True))
    actual = sorted((PHRASES.index(a.phrase), round(a.score, 4), *a.box) for a in kept)
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-3)


def test_d2_later_instances_of_a_class_join_the_first_one():
    people = [Detection("person", (20.0 * i, 0.0, 20.0 * i + 15, 30.0), 0.45, 1, 0.4) for i in range(1, 5)]
    rules = AggregationRules(Nms(0.7))
    first = aggregate([], [Detection("person", (0.0, 0.0, 15.0, 30.0), 0.55, 0, 0.5)], ["person"], rules)
    both = aggregate(first.annotations, people, ["person"], rules).annotations
    assert [a.iteration for a in both] == [0, 1, 1, 1, 1]


def test_d4_the_same_box_under_two_names_is_one_label_where_the_spec_says_so():
    box = (10.0, 10.0, 50.0, 40.0)
    found = [Detection("car", box, 0.8, 0, 0.5), Detection("vehicle", box, 0.6, 0, 0.5)]
    kept = aggregate([], found, ["vehicle", "car"], AggregationRules(Nms(0.7), cross_class_iou=0.9)).annotations
    assert [(a.phrase, len(a.merged_from)) for a in kept] == [("car", 2)]


def test_the_mean_box_of_a_dbscan_cluster_is_weighted_by_score():
    found = [
        Detection("cat", (0.0, 0.0, 10.0, 10.0), 0.75, 0, 0.5),
        Detection("cat", (2.0, 0.0, 12.0, 10.0), 0.25, 0, 0.2),
    ]
    (label,) = aggregate([], found, ["cat"], AggregationRules(Dbscan(0.5, 1, "mean"))).annotations
    assert label.box == (0.5, 0.0, 10.5, 10.0)
    assert math.isclose(label.score, 0.75)
