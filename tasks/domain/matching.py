"""Labels matched with the truth, one to one: how many were right, and how much of the truth they hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Boxes, box_area, box_iou

MATCH_IOU = 0.5  # Pascal VOC's bar for a right box (Everingham et al., IJCV 2010), and that of COCO's AP50
SAME_BOX = 0.01  # pixels between the coordinates of a box and its copy: ten times what rounding to thousandths makes


@dataclass(frozen=True)
class Counts:
    """True positives, false positives (labels without a truth), false negatives (truths without a label)."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def precision(self) -> float | None:
        """The share of the labels that are right; None without labels."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """The share of the truth that has a label; None without truth."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; None without labels and truth."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def count_matches(boxes: Boxes, scores: NDArray[np.float64], truth: Boxes, crowd: NDArray[np.bool_]) -> Counts:
    """How the labels of one image and class meet its truth, by the rule of `match_labels`.

    A label without a truth of its own that lies in a crowd region counts neither way, and a crowd region is never
    missed.

    Args:
        boxes: (N, 4) of the labels.
        scores: (N,) of the labels.
        truth: (M, 4).
        crowd: (M,), True for a region of many objects that are not boxed one by one.
    """
    objects = truth[~crowd]
    right = match_labels(boxes, scores, objects) >= 0  # (N,)
    in_crowd = _share_inside(boxes, truth[crowd]).max(axis=1, initial=0.0) >= MATCH_IOU  # (N,)
    found = int(np.count_nonzero(right))
    return Counts(found, int(np.count_nonzero(~right & ~in_crowd)), len(objects) - found)


def match_labels(
    boxes: Boxes, scores: NDArray[np.float64], truth: Boxes, own: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """The object that each label of one image and class stands for: (N,) indices into `truth`, -1 for none.

    COCO's rules: labels choose in the order of their scores, equal scores in the order given; each takes the free
    object that it overlaps most, at an IoU of `MATCH_IOU` or more.

    Args:
        boxes: (N, 4) of the labels.
        scores: (N,) of the labels.
        truth: (M, 4), no crowd regions.
        own: (N,), the objects that labels have before any other chooses, as `own_objects` gives them.
    """
    matches = np.full(len(boxes), -1, dtype=np.intp) if own is None else own.copy()
    ious = box_iou(boxes, truth)  # (N, M)
    ious[:, matches[matches >= 0]] = 0.0
    for label in np.argsort(-scores, kind="stable"):
        best = _most_overlapped(ious[label]) if matches[label] < 0 else None
        if best is not None:
            matches[label] = best
            ious[:, best] = 0.0
    return matches


def own_objects(
    label_ids: Sequence[int | str | None], boxes: Boxes, truth_ids: Sequence[int | str | None], truth: Boxes
) -> NDArray[np.intp]:
    """The object that each label was made from: (N,) indices into `truth`, -1 where the label does not tell.

    Labels made from the boxes of the truth keep their annotation ids. By these, two objects in the same box can be told
    apart; an id alone tells nothing, since every tool counts from 1. None stands for an annotation without an id.

    Args:
        label_ids: N of them.
        boxes: (N, 4) of the labels.
        truth_ids: M of them.
        truth: (M, 4).
    """
    free: dict[int | str | None, int]
    free = {identifier: place for place, identifier in enumerate(truth_ids) if identifier is not None}
    own = np.full(len(label_ids), -1, dtype=np.intp)
    for label, identifier in enumerate(label_ids):
        if identifier in free and (np.abs(boxes[label] - truth[free[identifier]]) <= SAME_BOX).all():
            own[label] = free.pop(identifier)
    return own


def _most_overlapped(ious: NDArray[np.float64]) -> int | None:
    """The object with the highest IoU at or above the bar, the last one of equals as in pycocotools, or None."""
    if not ious.size or ious.max() < MATCH_IOU:
        return None
    return int(np.flatnonzero(ious == ious.max())[-1])


def _share_inside(boxes: Boxes, regions: Boxes) -> NDArray[np.float64]:
    """The share of every box (N, 4) that lies in each region (M, 4): (N, M), in [0, 1]; COCO's IoU with a crowd."""
    shared, areas = shared_area(boxes, regions), box_area(boxes)[:, None]
    return np.divide(shared, areas, out=np.zeros_like(shared), where=areas > 0)


def shared_area(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Square pixels that every box in `a` (N, 4) shares with every box in `b` (M, 4): (N, M)."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (N, M, 2)
    return np.prod(np.clip(bottom_right - top_left, 0.0, None), axis=2)  # type: ignore[no-any-return]
