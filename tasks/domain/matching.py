"""Labels matched with the truth, one to one: how many were right, and how much of the truth they hold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Boxes, box_area, box_iou

MATCH_IOU = 0.5  # Pascal VOC's bar for a right box (Everingham et al., IJCV 2010), and that of COCO's AP50


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
    """How the labels of one image and class meet its truth at an IoU of `MATCH_IOU` or more, by COCO's rules.

    Labels choose in the order of their scores, equal scores in the order given; each takes the free truth that it
    overlaps most. A label without a truth of its own that lies in a crowd region counts neither way, and a crowd region
    is never missed.

    Args:
        boxes: (N, 4) of the labels.
        scores: (N,) of the labels.
        truth: (M, 4).
        crowd: (M,), True for a region of many objects that are not boxed one by one.
    """
    taken = np.zeros(np.count_nonzero(~crowd), dtype=np.bool_)
    ious = box_iou(boxes, truth[~crowd])  # (N, objects)
    in_crowd = _share_inside(boxes, truth[crowd]).max(axis=1, initial=0.0) >= MATCH_IOU  # (N,)
    false_positives = 0
    for label in np.argsort(-scores, kind="stable"):
        best = _most_overlapped(np.where(taken, 0.0, ious[label]))
        if best is not None:
            taken[best] = True
        elif not in_crowd[label]:
            false_positives += 1
    found = int(np.count_nonzero(taken))
    return Counts(found, false_positives, taken.size - found)


def _most_overlapped(ious: NDArray[np.float64]) -> int | None:
    """The truth with the highest IoU at or above the bar, the last one of equals as in pycocotools, or None."""
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
