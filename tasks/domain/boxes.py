"""Boxes: always xyxy, absolute pixels of the upright image, float64, half-open; arrays of shape (N, 4)."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Box: TypeAlias = tuple[float, float, float, float]
Boxes: TypeAlias = NDArray[np.float64]

SMALLEST_SIDE = 1.0  # pixels; a thinner box holds no pixel centre for sure, and COCO tools drop it


def box_iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection over union of every box in `a` (N, 4) with every box in `b` (M, 4): (N, M), in [0, 1].

    Two boxes without area have an IoU of 0.
    """
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (N, M, 2)
    sides = np.clip(bottom_right - top_left, 0.0, None)  # (N, M, 2)
    intersection = sides[..., 0] * sides[..., 1]  # (N, M)
    union = box_area(a)[:, None] + box_area(b)[None, :] - intersection
    iou: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def box_area(boxes: Boxes) -> NDArray[np.float64]:
    """Areas in square pixels (N,); 0 where a box is turned inside out."""
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None)  # (N, 2)
    return sides[:, 0] * sides[:, 1]


def clip_boxes(boxes: Boxes, width: int, height: int) -> Boxes:
    """The boxes (N, 4), cut to an image of `width` x `height` pixels."""
    return np.clip(boxes, 0.0, np.array([width, height, width, height], dtype=np.float64))


def is_degenerate(boxes: Boxes) -> NDArray[np.bool_]:
    """True (N,) where a side is under one pixel, or a coordinate is not finite."""
    sides = boxes[:, 2:] - boxes[:, :2]  # (N, 2)
    return np.asarray(~np.isfinite(boxes).all(axis=1) | (sides < SMALLEST_SIDE).any(axis=1))
