"""Which label stands for which object: by overlap, and before that by descent."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.boxes import box_iou
from tasks.domain.matching import MATCH_IOU, match_labels, own_objects

# Whole pixels in a small square, so that boxes overlap, touch and coincide often.
sides = st.tuples(st.integers(0, 12), st.integers(1, 10))
boxes = st.lists(
    st.tuples(sides, sides).map(lambda s: (s[0][0], s[1][0], s[0][0] + s[0][1], s[1][0] + s[1][1])), max_size=6
)


def array(rows):
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def matched(labels, truth, scores=None, own=None):
    scores = np.ones(len(labels)) if scores is None else np.array(scores, dtype=np.float64)
    return match_labels(array(labels), scores, array(truth), own).tolist()


def own(labels, label_ids, truth, truth_ids):
    return own_objects(label_ids, array(labels), truth_ids, array(truth))


@given(boxes, boxes)
def test_no_object_stands_for_two_labels_and_every_pair_overlaps_enough(labels, truth):
    matches = matched(labels, truth)
    pairs = [(label, match) for label, match in enumerate(matches) if match >= 0]
    assert len({match for _, match in pairs}) == len(pairs)
    assert all(box_iou(array(labels), array(truth))[pair] >= MATCH_IOU for pair in pairs)


@given(boxes, st.randoms())
def test_labels_made_from_the_truth_find_their_own_object_in_any_order(truth, random):
    order = random.sample(range(len(truth)), len(truth))
    labels, ids = [truth[i] for i in order], list(range(len(truth)))
    assert matched(labels, truth, own=own(labels, order, truth, ids)) == order


def test_of_two_objects_in_one_box_each_gets_the_label_of_its_id():
    both = [(0, 0, 10, 10)] * 2
    ids = own(both, [8, 7], both, [7, 8])
    assert matched(both, both) == [1, 0] != matched(both, both, own=own(both, [7, 8], both, [7, 8]))
    assert matched(both, both, own=ids) == [1, 0]


def test_an_own_object_comes_before_a_better_score():
    both = [(0, 0, 10, 10)] * 2
    assert matched(both, both[:1], scores=[0.9, 0.1], own=own(both, [5, 7], both[:1], [7])) == [-1, 0]


def test_an_id_alone_says_nothing():
    assert own([(0, 0, 10, 10)], [1], [(0.0, 0.0, 10.02, 10.0)], [1]).tolist() == [-1]


def test_a_box_may_have_been_rounded():
    assert own([(0, 0, 10, 10)], [1], [(0.0, 0.0, 10.0049, 10.0)], [1]).tolist() == [0]


def test_annotations_without_an_id_have_no_own_object():
    assert own([(0, 0, 10, 10)], [None], [(0, 0, 10, 10)], [None]).tolist() == [-1]


def test_the_same_id_twice_owns_one_object():
    both = [(0, 0, 10, 10)] * 2
    assert own(both, [1, 1], both, [1, 1]).tolist() in ([0, -1], [1, -1])


def test_a_label_takes_the_object_that_it_overlaps_most():
    assert matched([(0, 0, 10, 10)], [(0, 0, 10, 7), (0, 0, 10, 9)]) == [1]


def test_the_better_label_chooses_first():
    truth = [(0, 0, 10, 10)]
    assert matched([(0, 0, 10, 10), (0, 0, 10, 8)], truth, scores=[0.3, 0.9]) == [-1, 0]


def test_equal_scores_choose_in_the_order_given():
    assert matched([(0, 0, 10, 8), (0, 0, 10, 10)], [(0, 0, 10, 10)]) == [0, -1]
